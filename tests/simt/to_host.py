"""Rewrites the three spellings of CUDA source that a C++ compiler cannot take; see simt.h for what they become.

    __shared__ T name[A][B];            extern __shared__ T name[];           kernel<...><<<...>>>(...)

Lines stay where they are, and `#line` names the original file.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

ALIGNMENT = r"(?:(?:__align__|alignas)\s*\((?P<alignment>[^;{}]*?)\)\s*)?"
ELEMENT = r"(?P<type>[\w:<>,\s]+?)\s*\b(?P<name>\w+)\s*"
DYNAMIC = re.compile(rf"\bextern\s+__shared__\s+{ALIGNMENT}{ELEMENT}\[\s*\]\s*;")
STATIC = re.compile(rf"\b__shared__\s+{ALIGNMENT}{ELEMENT}(?P<extents>(?:\[[^\]]*\]\s*)*);")
NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'""", re.DOTALL
)


class ConversionError(ValueError):
    """CUDA source that to_host.py cannot rewrite."""


def code_only(source: str) -> str:
    """The source with comments and literals blanked, every character in its place."""
    return NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


def same_lines(text: str, original: str) -> str:
    """`text` with as many line ends as the original has."""
    return text + "\n" * (original.count("\n") - text.count("\n"))


def dynamic_array(match: re.Match[str]) -> str:
    element, name = match["type"], match["name"]
    text = f'{element}* {name} = ::simt::dynamic_shared<{element}>("{name}");'
    return same_lines(text, match[0])


def static_array(match: re.Match[str]) -> str:
    element, name, extents = match["type"], match["name"], match["extents"]
    arguments = f"simt_{name}, {match['alignment']}" if match["alignment"] else f"simt_{name}"
    # the lambda's variable is another one in each instance of a template, as the array is
    key = "[]() -> const void* { static char key; return &key; }()"
    text = (
        f"using simt_{name} = {element}{extents};"
        f' auto& {name} = ::simt::shared<{arguments}>({key}, "{name}");'
    )
    return same_lines(text, match[0])


def substitute(
    pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], source: str
) -> str:
    """`pattern.sub`, but looking at code alone."""
    pieces, end = [], 0
    for match in pattern.finditer(code_only(source)):
        pieces += [source[end : match.start()], replace(match)]
        end = match.end()
    return "".join(pieces) + source[end:]


def kernel_start(code: str, end: int) -> int:
    """Where the `space::kernel<arguments>` that ends at `end` begins."""
    start = end
    while True:
        if code[start - 1] == ">":
            depth = parentheses = 0
            while True:
                start -= 1
                parentheses += {")": 1, "(": -1}.get(code[start], 0)
                if parentheses == 0 and code[start - 1] != "-":
                    depth += {">": 1, "<": -1}.get(code[start], 0)
                if depth == 0:
                    break
        while start > 0 and (code[start - 1].isalnum() or code[start - 1] in "_:"):
            start -= 1
        if not (code[start : start + 2] == "::" and start > 0 and code[start - 1] == ">"):
            return start


def configuration_end(code: str, start: int) -> int:
    """Where the `>>>` stands that closes the `<<<` before `start`."""
    depth = 0
    for i in range(start, len(code)):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(code[i], 0)
        if depth == 0 and code.startswith(">>>", i) and code[i + 3 :].lstrip().startswith("("):
            return i
    raise ConversionError("a launch without its >>>")


def convert_launches(source: str) -> str:
    while (opening := (code := code_only(source)).find("<<<")) >= 0:
        closing = configuration_end(code, opening + 3)
        end = len(code[:opening].rstrip())
        start = kernel_start(code, end)
        kernel = source[start:end]
        name = " ".join(code[start:end].split())
        launch = (
            f"::simt::Launch({source[opening + 3 : closing]})"
            f'.of("{name}", [&](auto... simt_arguments)'
            f" {{ return ::simt::Kernel<decltype(simt_arguments)...>::resolve({kernel}); }})"
        )
        source = (
            source[:start] + same_lines(launch, source[start : closing + 3]) + source[closing + 3 :]
        )
    return source


def convert(source: str, path: str) -> str:
    """C++ for simt.h from CUDA source; `path` is what faults and compiler errors will name.

    Raises:
        ConversionError: a `__shared__` that is not one array a statement.
    """
    source = substitute(DYNAMIC, dynamic_array, source)
    source = substitute(STATIC, static_array, source)
    source = convert_launches(source)
    code = code_only(source)
    if (left := code.find("__shared__")) >= 0:
        line = code.count("\n", 0, left) + 1
        raise ConversionError(f"{path}:{line}: one __shared__ array per statement, please")
    return f'#line 1 "{path}"\n{source}'


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewrites CUDA source as C++ for simt.h.")
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.write_text(convert(arguments.source.read_text(), str(arguments.source)))


if __name__ == "__main__":
    main()
