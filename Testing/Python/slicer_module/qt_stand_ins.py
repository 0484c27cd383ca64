"""Stand-ins for what the module needs of the Slicer application, on PySide6 and slicer-core.

What stands for what:
    qt                      PythonQt's Qt: Qt properties are attributes (`button.enabled = False`, `label.text`),
                            signals are connected by signature (`button.connect("clicked()", f)`), `.name` is the
                            object's name, and nothing but properties can be set. QSettings lives in memory.
                            Tool tips come back as HTML, as the application's ctkToolTipTrapper leaves them.
    ctk                     ctkCollapsibleButton, ctkSliderWidget, ctkPathLineEdit: what the .ui uses of them
    slicer.qMRMLWidget      the root of a .ui
    slicer.qMRMLNodeComboBox  a selector that follows the scene's nodes; when the one it shows is about to be
    removed it takes another one, and says so, while that node is still in the scene
    slicer.i18n             texts as they are, with a record of what was translated
    slicer.ScriptedLoadableModule  the four base classes of a scripted module
    slicer.parameterNodeWrapper  typed parameters kept in a vtkMRMLScriptedModuleNode, connected to widgets by
                            their property `SlicerParameterName`
    SampleData              sources registered by modules, loaded from this disk
    slicer.app              an application in testing mode, that shows no message box

They prove neither PythonQt itself nor the real widgets: RefaceCGANTest does that inside Slicer.
"""

from __future__ import annotations

import enum
import hashlib
import html
import os
import re
import sys
import types
import typing
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

METHODS = {"QWidget.sizeHint", "QWidget.minimumSizeHint", "QProgressBar.text", "QTimer.singleShot"}
"""Names of properties that stay methods: virtual ones that Qt calls, and a static one."""


# --- the dialect of PythonQt ------------------------------------------------------------------------------


class Dialect:
    """Mixed into every class of Qt that the module uses."""

    def __getattribute__(self, name: str) -> Any:
        if name == "connect":  # PySide puts its own into each object
            return lambda signature, receiver: _connect(self, signature, receiver)
        if name == "setToolTip" and isinstance(self, QtWidgets.QWidget):
            return lambda text: super(Dialect, self).__getattribute__(name)(f"<p>{text}</p>" if text else "")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        known = isinstance(getattr(type(self), name, None), property | QtCore.Property)
        if not known and not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no property {name}, and PythonQt lets none be added")
        super().__setattr__(name, value)


def plain(tool_tip: str) -> str:
    """What a tool tip says, without its markup."""
    return html.unescape(re.sub(r"<[^<>]*>", "", tool_tip))


errors: list[Exception] = []
"""What receivers of signals raised, which Qt would only print."""


def _connect(sender: Any, signature: str, receiver: Callable) -> None:
    """Call the receiver with as many arguments as the signature names."""
    name, _, arguments = signature.rstrip(")").partition("(")
    count = len(arguments.split(",")) if arguments else 0

    def received(*values: Any) -> None:
        try:
            receiver(*values[:count])
        except Exception as error:
            errors.append(error)
            raise

    getattr(sender, name).connect(received)


def pythonqt(base: type) -> type:
    """The Qt class in PythonQt's dialect."""
    namespace: dict[str, Any] = {"name": _property("objectName")}
    meta = base.staticMetaObject
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        if not any(f"{kind.__name__}.{name}" in METHODS for kind in base.__mro__):
            namespace[name] = _property(name)
    if hasattr(base, "exec"):
        namespace["exec_"] = base.exec
    return type(base)(base.__name__, (Dialect, base), namespace)


def _property(name: str) -> property:
    def read(self: QtCore.QObject) -> Any:
        return self.property(name)

    def write(self: QtCore.QObject, value: Any) -> None:
        if not self.setProperty(name, value):
            raise TypeError(f"{type(self).__name__}.{name} cannot be {value!r}")

    return property(read, write)


WIDGETS = (
    *("QWidget", "QFrame", "QLabel", "QPushButton", "QToolButton", "QRadioButton", "QCheckBox", "QComboBox"),
    *("QLineEdit", "QProgressBar", "QSlider", "QSpinBox", "QDoubleSpinBox", "QListWidget"),
)  # fmt: skip
qt = types.ModuleType("qt")


def _as_it_is(name: str) -> Any:
    """A class of Qt that needs no dialect."""
    for home in (QtCore, QtGui, QtWidgets):
        if hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"Qt has no {name}")


qt.__getattr__ = _as_it_is  # type: ignore[method-assign]
for _name in WIDGETS:
    setattr(qt, _name, pythonqt(getattr(QtWidgets, _name)))


class QSettings:
    """Settings that end with the process."""

    kept: typing.ClassVar[dict[str, Any]] = {}

    def value(self, key: str, default: Any = None) -> Any:
        return self.kept.get(key, default)

    def setValue(self, key: str, value: Any) -> None:
        self.kept[key] = value

    def contains(self, key: str) -> bool:
        return key in self.kept

    def remove(self, key: str) -> None:
        self.kept.pop(key, None)


qt.QShortcut = pythonqt(QtGui.QShortcut)  # type: ignore[attr-defined]
qt.QTimer, qt.QEventLoop, qt.QSettings = pythonqt(QtCore.QTimer), pythonqt(QtCore.QEventLoop), QSettings  # type: ignore[attr-defined]


# --- the custom widgets of the .ui ------------------------------------------------------------------------


class ctkCollapsibleButton(qt.QWidget):  # type: ignore[name-defined,misc]
    """A section with a title that opens and closes."""

    contentsCollapsed = QtCore.Signal(bool)
    TITLE = 26

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self._button = QtWidgets.QToolButton(self)
        self._button.setAutoRaise(True)
        self._button.setToolButtonStyle(QtCore.Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.clicked.connect(lambda: self._collapse(not self._collapsed))
        self.setContentsMargins(0, self.TITLE, 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Fixed)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        self._button.setGeometry(0, 0, event.size().width(), self.TITLE)

    def _set_text(self, text: str) -> None:
        self._text = text
        self._button.setText(text)

    def showEvent(self, event: QtGui.QShowEvent) -> None:
        self._collapse(self._collapsed)

    def _collapse(self, collapsed: bool) -> None:
        changed, self._collapsed = collapsed != self._collapsed, collapsed
        arrow = QtCore.Qt.ArrowType
        self._button.setArrowType(arrow.RightArrow if collapsed else arrow.DownArrow)
        self.setFixedHeight(self.TITLE) if collapsed else self.setMaximumHeight(16777215)
        if not collapsed:
            self.setMinimumHeight(0)
        if changed:
            self.contentsCollapsed.emit(collapsed)

    text = QtCore.Property(str, lambda self: self._text, _set_text)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _collapse)


class ctkSliderWidget(qt.QWidget):  # type: ignore[name-defined,misc]
    """A slider with a spin box beside it, for real numbers."""

    valueChanged = QtCore.Signal(float)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider, self._spin = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal), QtWidgets.QDoubleSpinBox()
        self._slider.setRange(0, 1000)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin)
        self._slider.valueChanged.connect(self._slid)
        self._spin.valueChanged.connect(self._spun)
        self.setFocusProxy(self._spin)

    def _slid(self, at: int) -> None:
        low, high = self._spin.minimum(), self._spin.maximum()
        self._spin.setValue(low + (high - low) * at / 1000)

    def _spun(self, value: float) -> None:
        low, high = self._spin.minimum(), self._spin.maximum()
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - low) / (high - low)) if high > low else 0)
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    value = QtCore.Property(float, lambda self: self._spin.value(), lambda self, x: self._spin.setValue(x))
    minimum = QtCore.Property(float, lambda self: self._spin.minimum(), lambda self, x: self._spin.setMinimum(x))
    maximum = QtCore.Property(float, lambda self: self._spin.maximum(), lambda self, x: self._spin.setMaximum(x))
    decimals = QtCore.Property(int, lambda self: self._spin.decimals(), lambda self, x: self._spin.setDecimals(x))
    singleStep = QtCore.Property(
        float, lambda self: self._spin.singleStep(), lambda self, x: self._spin.setSingleStep(x)
    )


class ctkPathLineEdit(qt.QWidget):  # type: ignore[name-defined,misc]
    """A path to type or to browse for. As in CTK it tells of a path by one signal and of none by the other."""

    Files, Dirs = 2, 1
    currentPathChanged, validInputChanged = QtCore.Signal(str), QtCore.Signal(bool)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._combo, self._filters, self._valid = QtWidgets.QComboBox(), 0, False
        self._combo.setEditable(True)
        self._combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._combo.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        browse = QtWidgets.QToolButton()
        browse.setText("…")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        layout.addWidget(browse)
        self._combo.currentTextChanged.connect(self._changed)
        self.setFocusProxy(self._combo)

    def _changed(self, path: str) -> None:
        changed, self._valid = self._valid != bool(path), bool(path)
        if path:
            self.currentPathChanged.emit(path)
        if changed:
            self.validInputChanged.emit(self._valid)

    def addCurrentPathToHistory(self) -> None: ...

    currentPath = QtCore.Property(
        str, lambda self: self._combo.currentText(), lambda self, x: self._combo.setCurrentText(x)
    )
    minimumContentsLength = QtCore.Property(
        int,
        lambda self: self._combo.minimumContentsLength(),
        lambda self, x: self._combo.setMinimumContentsLength(x),
    )
    filters = QtCore.Property(int, lambda self: self._filters, lambda self, x: setattr(self, "_filters", x))


class qMRMLWidget(qt.QWidget):  # type: ignore[name-defined,misc]
    mrmlSceneChanged = QtCore.Signal(object)

    def setMRMLScene(self, scene: slicer.vtkMRMLScene) -> None:
        self._scene = scene
        for child in self.findChildren(qMRMLNodeComboBox):  # what the connections in the .ui do
            child.setMRMLScene(scene)
        self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(qt.QWidget):  # type: ignore[name-defined,misc]
    """A selector that follows the scene's nodes."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene, self._tags, self._shown = None, [], None
        self._types: list[str] = []
        self._none, self._none_enabled, self._others = "None", False, False
        self._combo = QtWidgets.QComboBox()
        self._combo.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._combo.setMinimumContentsLength(8)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.currentIndexChanged.connect(lambda _index: self._tell())
        self.setFocusProxy(self._combo)

    def setMRMLScene(self, scene: slicer.vtkMRMLScene | None) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        events = (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent)
        self._tags = [scene.AddObserver(event, lambda *_: self._fill()) for event in events] if scene else []
        if scene:
            self._tags.append(scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._leaving))
        self._fill()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leaving(self, _scene: object, _event: str, node: slicer.vtkMRMLNode) -> None:
        """The row goes before the node does; if it was the one shown, the next one is."""
        row = self._combo.findData(node.GetID())
        if row >= 0:
            self._combo.removeItem(row)

    def _fill(self) -> None:
        current = self._shown
        nodes = [node for kind in self._types for node in slicer.util.getNodesByClass(kind, self._scene)]
        nodes = [n for n in nodes if not n.GetHideFromEditors() and n.GetClassName() in self._types]
        self._combo.blockSignals(True)
        self._combo.clear()
        if self._none_enabled:
            self._combo.addItem(self._none, "")
        for node in nodes:
            self._combo.addItem(node.GetName(), node.GetID())
        self._combo.setCurrentIndex(max(0, self._combo.findData(current or "")))
        self._combo.blockSignals(False)
        self._tell()

    def _tell(self) -> None:
        shown = self._combo.currentData() or None
        if shown != self._shown:
            self._shown = shown
            self.currentNodeChanged.emit(self.currentNode())

    def currentNode(self) -> slicer.vtkMRMLNode | None:
        return self._scene.GetNodeByID(self._shown) if self._scene and self._shown else None

    def setCurrentNode(self, node: slicer.vtkMRMLNode | None) -> None:
        self._combo.setCurrentIndex(max(0, self._combo.findData(node.GetID() if node else "")))

    def _set_types(self, kinds: list[str]) -> None:
        self._types = list(kinds)
        if self._scene:
            self._fill()

    nodeTypes = QtCore.Property("QStringList", lambda self: self._types, _set_types)
    noneDisplay = QtCore.Property(str, lambda self: self._none, lambda self, x: setattr(self, "_none", x))
    noneEnabled = QtCore.Property(bool, lambda s: s._none_enabled, lambda s, x: setattr(s, "_none_enabled", x))
    showChildNodeTypes = QtCore.Property(bool, lambda s: s._others, lambda s, x: setattr(s, "_others", x))
    addEnabled = QtCore.Property(bool, lambda self: False, lambda self, x: None)
    removeEnabled = QtCore.Property(bool, lambda self: False, lambda self, x: None)
    renameEnabled = QtCore.Property(bool, lambda self: False, lambda self, x: None)


ctk = types.ModuleType("ctk")
for _custom in (ctkCollapsibleButton, ctkSliderWidget, ctkPathLineEdit):
    setattr(ctk, _custom.__name__, _custom)
CUSTOM = {
    kind.__name__: kind for kind in (*vars(ctk).values(), qMRMLWidget, qMRMLNodeComboBox) if isinstance(kind, type)
}


class QUiLoader(QtUiTools.QUiLoader):
    """Builds a .ui of the classes above; a class that nothing stands in for fails."""

    def createWidget(
        self, kind: str, parent: QtWidgets.QWidget | None = None, name: str = ""
    ) -> QtWidgets.QWidget:
        if kind == "Line":
            return super().createWidget(kind, parent, name)
        if kind not in CUSTOM and kind not in WIDGETS:
            raise LookupError(f"nothing stands in for {kind} ({name})")
        widget = CUSTOM[kind](parent) if kind in CUSTOM else getattr(qt, kind)(parent)
        widget.setObjectName(name)
        return widget


qt.QUiLoader = QUiLoader  # type: ignore[attr-defined]


# --- slicer.parameterNodeWrapper --------------------------------------------------------------------------


class WithinRange:
    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def check(self, value: float) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} and {self.maximum}")


class _Parameter:
    """One typed parameter of a parameter node: how it is kept, and how a widget shows it."""

    def __init__(self, name: str, hint: Any, default: Any) -> None:
        annotated = typing.get_origin(hint) is typing.Annotated
        self.kind = typing.get_args(hint)[0] if annotated else hint
        self.range = (
            next((a for a in typing.get_args(hint)[1:] if isinstance(a, WithinRange)), None) if annotated else None
        )
        self.name, self.default = name, default
        self.is_node = issubclass(self.kind, slicer.vtkMRMLNode)
        self.is_choice = issubclass(self.kind, enum.Enum)

    def read(self, node: slicer.vtkMRMLScriptedModuleNode) -> Any:
        if self.is_node:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if self.is_choice:
            return self.kind[text]
        return text == "True" if self.kind is bool else self.kind(text)

    def write(self, node: slicer.vtkMRMLScriptedModuleNode, value: Any) -> None:
        if not isinstance(value, (int, float) if self.kind is float else self.kind) and not (
            self.is_node and value is None
        ):
            raise TypeError(f"{self.name} cannot be {value!r}")
        if self.range:
            self.range.check(value)
        if self.is_node:
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value else None)
        else:
            node.SetParameter(self.name, value.name if self.is_choice else str(value))

    def bind(self, widget: Any, tell: Callable[[Any], None]) -> Callable[[Any], None]:
        """Call `tell` with what the widget is set to, and return what shows a value in it."""
        if self.is_node:
            widget.nodeTypes = [self.kind.__name__]
            widget.currentNodeChanged.connect(lambda _node: tell(widget.currentNode()))
            return widget.setCurrentNode
        if self.kind is bool:
            widget.toggled.connect(tell)
            return lambda value: setattr(widget, "checked", value)
        if self.is_choice:
            choices = list(self.kind)
            widget.clear()
            for choice in choices:
                widget.addItem(choice.label())
            widget.currentIndexChanged.connect(lambda index: tell(choices[index]))
            return lambda value: setattr(widget, "currentIndex", choices.index(value))
        if self.range:
            widget.minimum, widget.maximum = self.range.minimum, self.range.maximum
        widget.valueChanged.connect(tell)
        return lambda value: setattr(widget, "value", value)


def parameterNodeWrapper(cls: type) -> type:
    parameters = [
        _Parameter(name, hint, getattr(cls, name, None))
        for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    ]

    def __init__(self: Any, node: slicer.vtkMRMLScriptedModuleNode) -> None:
        self.parameterNode, self._guis, self._showing = node, {}, False
        complete(node)
        node.AddObserver("ModifiedEvent", lambda *_: complete(node))  # as Slicer's, also once nobody uses it

    def complete(node: slicer.vtkMRMLScriptedModuleNode) -> None:
        for parameter in parameters:
            if not node.HasParameter(parameter.name):
                default = parameter.default
                if default is None and not parameter.is_node:
                    default = next(iter(parameter.kind)) if parameter.is_choice else parameter.kind()
                parameter.write(node, default)

    def show(self: Any) -> None:
        if not self._showing:
            self._showing = True
            for shown in list(self._guis.values()):
                for parameter, put in shown:
                    put(parameter.read(self.parameterNode))
            self._showing = False

    def connectGui(self: Any, gui: Any) -> None:
        """As Slicer's, it tells no tag."""
        connectParametersToGui(self, {
            w.property("SlicerParameterName"): w for w in vars(gui).values() if w.property("SlicerParameterName")
        })  # fmt: skip

    def connectParametersToGui(self: Any, named: dict[str, Any]) -> int:
        unknown = set(named) - {parameter.name for parameter in parameters}
        if unknown:
            raise ValueError(f"no parameter is called {unknown}")
        tag = len(self._guis)
        self._guis[tag] = shown = []

        def told(parameter: _Parameter, value: Any) -> None:
            if not self._showing and tag in self._guis:
                parameter.write(self.parameterNode, value)

        for parameter in parameters:
            if parameter.name in named:
                put = parameter.bind(
                    named[parameter.name], lambda value, parameter=parameter: told(parameter, value)
                )
                put(parameter.read(self.parameterNode))
                shown.append((parameter, put))
        self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: show(self))
        return tag

    for parameter in parameters:
        read = lambda self, parameter=parameter: parameter.read(self.parameterNode)  # noqa: E731
        write = lambda self, value, parameter=parameter: parameter.write(self.parameterNode, value)  # noqa: E731
        setattr(cls, parameter.name, property(read, write))
    cls.__init__ = __init__
    cls.connectGui, cls.connectParametersToGui = connectGui, connectParametersToGui
    cls.disconnectGui = lambda self, tag: self._guis.pop(tag, None)
    cls.AddObserver = lambda self, event, f, priority=0.0: self.parameterNode.AddObserver(event, f, priority)
    cls.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    return cls


# --- slicer.ScriptedLoadableModule ------------------------------------------------------------------------


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent, self.moduleName = parent, type(self).__name__


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: qMRMLWidget) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent, self.layout = parent, parent.layout()

    def resourcePath(self, name: str) -> str:
        return str(Path(sys.modules[type(self).__module__].__file__).parent / "Resources" / name)

    def setup(self) -> None: ...

    def cleanup(self) -> None: ...

    def onReload(self) -> None:
        """Makes the widget anew, in the same place, and does not enter it."""
        self.cleanup()
        made = type(self)(self.parent)
        setattr(slicer.modules, type(self).__name__, made)
        made.setup()


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> slicer.vtkMRMLScriptedModuleNode:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node:
            return node
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str, requestedDelay: int | None = None) -> None: ...


# --- the application --------------------------------------------------------------------------------------

translated: list[str] = []
"""Every text that went through `_()`."""


def tr(text: str) -> str:
    translated.append(text)
    return text


class Started:
    """What `slicer.app` does for the module beside what slicer_offscreen.Application does. It is always in testing
    mode, in which slicer.util shows no message box and takes every question as answered with yes."""

    applicationName = "Slicer"
    slicerHome = ""

    def __init__(self) -> None:
        self.at_startup: list[Callable[[], None]] = []

    def testingEnabled(self) -> bool:
        return True

    def connect(self, signature: str, receiver: Callable[[], None]) -> None:
        if signature == "startupCompleted()":
            self.at_startup.append(receiver)

    def setOverrideCursor(self, _cursor: Any) -> None: ...

    def restoreOverrideCursor(self) -> None: ...


def complete(app: Any) -> None:
    """Give a stand-in of `slicer.app` what the module asks of it."""
    started = Started()
    for name in (
        "applicationName",
        "slicerHome",
        "at_startup",
        *(n for n in vars(Started) if not n.startswith("_")),
    ):
        setattr(app, name, getattr(started, name))

    def processEvents() -> None:
        type(app).processEvents(app)
        QtWidgets.QApplication.processEvents()

    app.processEvents = processEvents


class SampleDataLogic:
    """The Sample Data module: a source is a file on this disk, and is checked against its SHA-256."""

    sources: typing.ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def registerCustomSampleDataSource(cls, **source: Any) -> None:
        cls.sources[source["sampleName"]] = source


def downloadSample(name: str) -> slicer.vtkMRMLScalarVolumeNode:
    source = SampleDataLogic.sources[name]
    path = Path(source["uris"].removeprefix("file://"))
    assert source["checksums"] == f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", source["nodeNames"])
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.ReadData(node)
    return node


def application() -> QtWidgets.QApplication:
    """The Qt application of this process, in Qt's own style so that pictures do not depend on the desktop."""
    there = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    there.setStyle("Fusion")
    return there


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


MODULES = {
    "qt": qt,
    "ctk": ctk,
    "SampleData": _module("SampleData", SampleDataLogic=SampleDataLogic, downloadSample=downloadSample),
    "slicer.i18n": _module("slicer.i18n", tr=tr, translate=lambda context, text: tr(text)),
    "slicer.ScriptedLoadableModule": _module(
        "slicer.ScriptedLoadableModule",
        **{kind.__name__: kind for kind in (
            ScriptedLoadableModule, ScriptedLoadableModuleWidget,
            ScriptedLoadableModuleLogic, ScriptedLoadableModuleTest,
        )},
    ),
    "slicer.parameterNodeWrapper": _module(
        "slicer.parameterNodeWrapper", parameterNodeWrapper=parameterNodeWrapper, WithinRange=WithinRange
    ),
}  # fmt: skip


def install() -> None:
    """Make the stand-ins importable under the names that they stand for."""
    application()
    sys.modules.update(MODULES)
    for name, module in MODULES.items():
        if name.startswith("slicer."):
            setattr(slicer, name.removeprefix("slicer."), module)
    slicer.qMRMLWidget, slicer.qMRMLNodeComboBox = qMRMLWidget, qMRMLNodeComboBox
