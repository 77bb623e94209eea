"""What pyproject.toml cannot say: two packages from two folders, and registry.yaml inside the first of them.

`plugins/` is installed as `tokenzoo_plugins`. registry.yaml stands at the top of the source tree, where people look
for it, and is copied into the package when a wheel is built; an editable installation reads it where it stands.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithRegistry(build_py):
    """Copy registry.yaml into the built package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("registry.yaml", str(self._registry()))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copied = [] if self.editable_mode else [str(self._registry())]
        return [*super().get_outputs(include_bytecode), *copied]

    def _registry(self) -> Path:
        return Path(self.build_lib) / "tokenzoo" / "registry.yaml"


setup(
    packages=[*find_packages(include=["tokenzoo", "tokenzoo.*"]), "tokenzoo_plugins"],
    package_dir={"tokenzoo": "tokenzoo", "tokenzoo_plugins": "plugins"},
    package_data={
        "tokenzoo": [
            "py.typed",
            "bench/checkpoints/**/*",
            "comparison/configs/*.yaml",
            "cost/tables/*.yaml",
            "lmms/*.yaml",
            "templates/**/*",
        ]
    },
    include_package_data=False,
    cmdclass={"build_py": BuildWithRegistry},
)
