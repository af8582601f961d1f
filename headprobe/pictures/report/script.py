"""The page's modules as one script: a page that is opened from a folder cannot import modules from beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping

IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([a-z-]+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function) (\w+))", re.MULTILINE)


def bundle(modules: Mapping[str, str]) -> str:
    """The texts of modules by name, those that are imported first, as one strict script that leaves no name behind.

    Every module keeps a scope of its own, so that it has what it imports and nothing else. Imports are written as
    `import { a, b } from "./module.js";`, exports as `export const` or `export function`.

    >>> one = "export const one = 1;\\n"
    >>> print(bundle({"one": one, "two": 'import { one } from "./one.js";\\nalert(one);\\n'}))
    "use strict";
    (() => {
    const modules = {};
    modules["one"] = (() => {
    const one = 1;
    return { one };
    })();
    modules["two"] = (() => {
    const { one } = modules["one"];
    alert(one);
    return {  };
    })();
    })();
    <BLANKLINE>
    """
    return (
        '"use strict";\n(() => {\nconst modules = {};\n' + "".join(map(_closed, modules, modules.values())) + "})();\n"
    )


def _closed(name: str, text: str) -> str:
    """A module as a function that is called at once and gives what it exports."""
    body = EXPORT.sub("", IMPORT.sub(r'const \1 = modules["\2"];', text))
    return f'modules["{name}"] = (() => {{\n{body}return {{ {", ".join(EXPORT.findall(text))} }};\n}})();\n'
