"""What `fanin run` puts in front of a child's path: it watches the first steps, and is otherwise not there.

Python imports `sitecustomize` before any script. This one takes its folder off `sys.path`, waits until `torch` has
been imported, if it ever is, and then lets fanin watch; it lets the `sitecustomize` that it hides run as well. It
must work in every Python 3 that a script may start, with or without fanin, and never harm the script.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import os
import sys

FRAMEWORKS = ("torch",)
"""Modules whose import we wait for."""

HOOK = "fanin.autowatch"
"""Module of ours whose `install(framework)` is called once one of them has been imported."""


class Waiting:
    """A finder that finds nothing itself: it lets the others find a framework, and notes when it has loaded."""

    def find_spec(self, name, path=None, target=None):
        """The spec that the other finders give, its loader followed by our hook."""
        if name not in FRAMEWORKS or path is not None:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                self._follow(spec.loader, name)
                return spec
        return None

    def _follow(self, loader, name):
        """Call the hook after the loader has executed the module; the loader is left as it was."""

        def execute(module):
            del loader.exec_module
            loader.exec_module(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            watch(name)

        try:
            loader.exec_module = execute
        except AttributeError:  # a loader without attributes of its own: frozen, built in, or none at all
            say("cannot tell when " + name + " has been imported; nothing will be watched")


def watch(name):
    """Let fanin watch a framework that has just been imported."""
    try:
        from importlib import import_module

        import_module(HOOK).install(name)
    except ModuleNotFoundError as error:
        say("nothing will be watched: " + sys.executable + " has no module " + str(error.name))
    except Exception as error:  # noqa: BLE001 - whatever happens to us, the script goes on
        say("nothing will be watched: " + type(error).__name__ + ": " + str(error))


def say(text):
    """One line on stderr, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write("fanin: " + " ".join(text.split()) + "\n")


def leave_no_trace():
    """Make `sys.path` what it would be without us. PYTHONPATH stays: the script's own children need it."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here or entry == ""]
    sys.path_importer_cache.pop(here, None)


leave_no_trace()
if os.environ.get("FANIN_TRIAL"):
    sys.meta_path.insert(0, Waiting())
# Last, so that whatever the hidden one does, or raises, is as if it had been found first. Where there is none,
# ModuleNotFoundError says so to Python, which expects it.
del sys.modules["sitecustomize"]
__import__("sitecustomize")
