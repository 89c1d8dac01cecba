"""House rules that a linter does not know: sizes, names, banned calls, one name per operator."""

from __future__ import annotations

import ast
import re

import pytest

from tests.house.tree import PRODUCT, ROOT, dotted, functions, parsed, project_files, python_files

CODE = {".py", ".c", ".cpp", ".h", ".hpp", ".cu"}
PYTHON = python_files()
PRODUCT_PYTHON = python_files(*PRODUCT)
CPP = [path for path in project_files() if path.parts[0] == "csrc" and path.suffix in CODE]
OPS = sorted(path.parent.name for path in project_files() if path.match("kernels/*/op.py"))

MOST_LINES = 400
MOST_LINES_IN_ROOM = {("fastssl", "methods"): 200, ("kernels",): 300}
MOST_FUNCTION_LINES, MOST_KERNEL_LINES, MOST_DOCSTRING_LINES = 40, 100, 10
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
CODE_IN_INIT = {"kernels/__init__.py", "fastssl/__init__.py", "fastssl/losses/__init__.py"}
CODE_IN_INIT |= {"fastssl/methods/__init__.py", "fastssl/augment/__init__.py"}
FOREIGN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FOREIGN_CALLS = {"torch.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"}
SKIPS = {"pytest.skip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.importorskip"}
FOREIGN_CALLS |= {"torch.hub.load", "torch.save", "os.popen"}


def for_each(paths):
    """One test of a rule for many files; its failure lists every file that breaks the rule."""

    def as_test(rule):
        def test():
            broken = []
            for path in paths:
                try:
                    rule(path)
                except AssertionError as failure:
                    broken.append(f"{path}: {failure}")
            assert not broken, "\n".join(broken)

        test.__name__, test.__doc__, test.rule = rule.__name__, rule.__doc__, rule
        return test

    return as_test


@for_each([path for path in project_files() if path.suffix in CODE])
def test_a_file_tells_one_story(path):
    rooms = [most for room, most in MOST_LINES_IN_ROOM.items() if path.parts[: len(room)] == room]
    most = min([MOST_LINES, *rooms])
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= most, f"{path} has {lines} lines, at most {most}"


@for_each(PYTHON)
def test_a_function_fits_a_screen(path):
    long = []
    for function in functions(path):
        lines = code_lines(function)
        most = MOST_KERNEL_LINES if is_triton(function) else MOST_FUNCTION_LINES
        if lines > most:
            long.append(f"{path}:{function.lineno} {function.name}: {lines} lines, at most {most}")
    assert not long, "\n".join(long)


def code_lines(function):
    """Lines from `def` to the end, less the docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def is_triton(function):
    names = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(dotted(name).rpartition(".")[2].strip("_") == "jit" for name in names)


@for_each(CPP)
def test_a_cpp_function_fits_two_screens(path):
    long = [
        f"{path}:{line}: {lines} lines, at most {MOST_KERNEL_LINES}"
        for line, lines in cpp_functions((ROOT / path).read_text(encoding="utf-8"))
        if lines > MOST_KERNEL_LINES
    ]
    assert not long, "\n".join(long)


def cpp_functions(source):
    """(first line, number of lines) of every outermost block that follows a parenthesis."""
    noise = (
        r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\''
    )
    blank = re.sub(noise, lambda m: re.sub(r"[^\n]", " ", m.group()), source, flags=re.S | re.M)
    function_head = re.compile(r"\)[\s\w:]*(?:->[^;{}]*)?$")
    depth, start = 0, None
    for position, character in enumerate(blank):
        if character == "{":
            if start is None and function_head.search(blank[:position].rstrip()[-80:]):
                start, outside = position, depth
            depth += 1
        elif character == "}":
            depth -= 1
            if start is not None and depth == outside:
                yield blank.count("\n", 0, start) + 1, blank.count("\n", start, position) + 1
                start = None


@for_each(project_files())
def test_a_file_is_named_for_what_it_does(path):
    assert path.stem.lower() not in NAMELESS
    assert not NAMELESS & {part.lower() for part in path.parts[:-1]}


@for_each(PRODUCT_PYTHON)
def test_nothing_can_execute_foreign_bytes(path):
    found = []
    for node in ast.walk(parsed(path)):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: import {n}" for n in imported if n in FOREIGN_IMPORTS]
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {what}" for what in dangerous(node)]
    assert not found, f"{path}: {found}"


def dangerous(call):
    if dotted(call.func) in FOREIGN_CALLS:
        yield dotted(call.func)
    for keyword in call.keywords:
        on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        if keyword.arg in ("allow_pickle", "shell", "trust_remote_code") and on:
            yield f"{keyword.arg}=True"


@for_each(project_files())
def test_no_path_of_one_machine(path):
    """A path that exists on the author's machine alone works nowhere else."""
    homes = "|".join(("work", "root", "home", "Users", "opt/dev"))
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # a binary file
    found = re.findall(rf"(?<![\w.$}}])/(?:{homes})/\w+", text)
    assert not found, f"{path}: {found}"


@for_each(PYTHON)
def test_nothing_is_left_for_later(path):
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"))
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not re.findall(rf"\b(?:{marks})\b", text)
    for function in functions(path):
        raised = [n for n in ast.walk(function) if isinstance(n, ast.Raise) and n.exc]
        names = [dotted(n.exc.func if isinstance(n.exc, ast.Call) else n.exc) for n in raised]
        assert "NotImplementedError" not in names, f"{path}:{function.lineno}"


@for_each(PRODUCT_PYTHON)
def test_a_module_says_what_it_is(path):
    docstring = ast.get_docstring(parsed(path)) if parsed(path).body else None
    assert docstring, f"{path} has no docstring"
    assert len(docstring.splitlines()) <= MOST_DOCSTRING_LINES


@for_each(PRODUCT_PYTHON)
def test_everything_public_is_documented(path):
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [n for n in parsed(path).body if isinstance(n, kinds) and not n.name.startswith("_")]
    bare = [f"{path}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    assert not bare, "\n".join(bare)


@for_each(
    [path for path in PRODUCT_PYTHON if path.name != "__init__.py" and path.name != "setup.py"]
)
def test_annotations_cost_nothing_at_import(path):
    imports = [node for node in parsed(path).body if isinstance(node, ast.ImportFrom)]
    assert any(node.module == "__future__" for node in imports)


@for_each([path for path in PRODUCT_PYTHON if path.name == "__init__.py"])
def test_a_package_file_is_a_docstring(path):
    if str(path) not in CODE_IN_INIT:
        assert len(parsed(path).body) == 1, f"{path} holds code"


@for_each(
    [path for path in PYTHON if path.parts[:2] in (("fastssl", "losses"), ("fastssl", "methods"))]
)
def test_the_dispatcher_chooses_the_device(path):
    """Never `if x.is_cuda` in a caller."""
    attributes = [n.attr for n in ast.walk(parsed(path)) if isinstance(n, ast.Attribute)]
    assert not {"is_cuda", "is_cpu"} & set(attributes)


@pytest.mark.parametrize("op", OPS)
def test_one_name_per_operator_in_every_room(op):
    rooms = [f"kernels/{op}/{story}.py" for story in ("reference", "kernel", "op", "spec")]
    rooms += [f"csrc/{op}.cpp", f"tests/kernels/test_{op}.py", f"benchmarks/micro/{op}.py"]
    missing = [room for room in rooms if not (ROOT / room).is_file()]
    assert not missing, f"{op}: {missing}"
    assert f'"{op}(' in (ROOT / f"kernels/{op}/op.py").read_text()


def test_there_is_an_operator_to_check():
    assert "ntxent" in OPS


def test_every_public_loss_is_tested():
    from fastssl import losses

    tests = "".join((ROOT / p).read_text() for p in PYTHON if p.parts[:2] == ("tests", "losses"))
    assert [name for name in losses.__all__ if f"{name}(" not in tests] == []


@for_each([path for path in PYTHON if path.parts[0] == "tests"])
def test_a_skip_has_a_reason(path):
    nodes = list(ast.walk(parsed(path)))
    named = [n for n in nodes if isinstance(n, ast.Attribute) and dotted(n) in SKIPS]
    spoken = [n.func for n in nodes if isinstance(n, ast.Call) and has_reason(n)]
    bare = [f"{path}:{node.lineno} {dotted(node)}" for node in named if node not in spoken]
    assert not bare, "\n".join(bare)


def has_reason(call):
    given = [k.value for k in call.keywords if k.arg == "reason"]
    given += call.args[:1] if dotted(call.func) == "pytest.skip" else []
    return any(not (isinstance(value, ast.Constant) and not value.value) for value in given)


BROKEN = [
    (test_a_file_tells_one_story, "x = 1\n" * (MOST_LINES + 1)),
    (test_a_function_fits_a_screen, "def f():\n" + "    x = 1\n" * MOST_FUNCTION_LINES),
    (test_a_cpp_function_fits_two_screens, "int f(int a) {\n" + "a;\n" * MOST_KERNEL_LINES + "}"),
    (test_nothing_can_execute_foreign_bytes, "import pickle"),
    (test_nothing_can_execute_foreign_bytes, "from torch import load; import torch; torch.load(1)"),
    (test_nothing_can_execute_foreign_bytes, "run('ls', shell=True)"),
    (test_no_path_of_one_machine, "DATA = '/" + "home/me/data'"),
    (test_nothing_is_left_for_later, "# TO" + "DO: tests"),
    (test_nothing_is_left_for_later, "def f():\n    raise NotImplementedError"),
    (test_a_module_says_what_it_is, "x = 1"),
    (test_everything_public_is_documented, "def f():\n    return 1"),
    (test_annotations_cost_nothing_at_import, "import torch"),
    (test_a_package_file_is_a_docstring, "import torch\nx = 1"),
    (test_the_dispatcher_chooses_the_device, "if x.is_cuda:\n    pass"),
    (test_a_skip_has_a_reason, "import pytest\npytest.skip()"),
    (test_a_skip_has_a_reason, "import pytest\n@pytest.mark.skip\ndef test():\n    pass"),
]


@pytest.mark.parametrize(("test", "source"), BROKEN, ids=[t.__name__[5:] for t, _ in BROKEN])
def test_a_rule_sees_what_it_forbids(test, source, tmp_path):
    path = tmp_path / "planted.py"
    path.write_text(source)
    with pytest.raises(AssertionError):
        test.rule(path)
