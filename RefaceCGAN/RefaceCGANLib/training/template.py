from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import torch
from torch.nn import functional

@dataclass(frozen=True)
class PreparedHead:
    name: str
    image: np.ndarray
    brain: np.ndarray
    index_to_template: np.ndarray
    @classmethod
    def read(cls, path):
        d=np.load(path); return cls(Path(path).stem,d['image'],d['brain'],d['index_to_template'])

@dataclass(frozen=True)
class Template:
    head: np.ndarray
    affine: np.ndarray
    def inside_head(self, c):
        inv=torch.from_numpy(np.linalg.inv(self.affine).astype(np.float32))
        i=c@inv[:3,:3].T+inv[:3,3]
        s=torch.tensor(self.head.shape)
        g=(2*i/(s-1)-1).flip(-1)[None]
        return functional.grid_sample(torch.from_numpy(self.head.astype(np.float32))[None,None],g,align_corners=True)[0,0]>0.5
