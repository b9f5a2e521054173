"""What a user says of a cluster, checked; Dask is not imported for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..errors import ConfigError

_LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://[^/\s]+")


@dataclass(frozen=True)
class ClusterOptions:
    """What a user says of a cluster.

    Attributes
    ----------
    where : str
        ``local:N`` for N processes on this machine, or the address of a scheduler, ``tcp://host:port``.
    tls_ca, tls_cert, tls_key : path or None
        Certificates (PEM) for a scheduler at ``tls://host:port``.
    dashboard : bool
        Whether a cluster on this machine has Dask's dashboard.
    """

    where: str
    tls_ca: str | os.PathLike[str] | None = None
    tls_cert: str | os.PathLike[str] | None = None
    tls_key: str | os.PathLike[str] | None = None
    dashboard: bool = False

    def check(self) -> ClusterOptions:
        """Return self, or raise ConfigError for what is wrong or would do nothing."""
        certificates = {"tls_ca": self.tls_ca, "tls_cert": self.tls_cert, "tls_key": self.tls_key}
        given = [name for name, path in certificates.items() if path is not None]
        if not self.local and not _ADDRESS.fullmatch(self.where):
            raise ConfigError(
                f"the cluster is {self.where!r}; expected local:N for N processes on this machine, or the address of a "
                f"scheduler such as tcp://10.0.0.1:8786."
            )
        if given and not self.where.startswith("tls://"):
            raise ConfigError(f"{', '.join(given)} does nothing with cluster {self.where!r}; give a tls:// address.")
        if self.where.startswith("tls://") and len(given) < len(certificates):
            missing = ", ".join(name for name in certificates if name not in given)
            raise ConfigError(f"a tls:// scheduler needs {', '.join(certificates)}; {missing} is missing.")
        for name, path in certificates.items():
            if path is not None and not os.path.isfile(path):
                raise ConfigError(f"{name} is {os.fspath(path)!r}, and there is no such file.")
        if self.dashboard and not self.local:
            raise ConfigError("dashboard is for a cluster on this machine; a scheduler elsewhere has its own.")
        return self

    @property
    def local(self) -> int:
        """Workers of a cluster on this machine; 0 for one elsewhere."""
        found = _LOCAL.fullmatch(self.where)
        return int(found[1]) if found else 0
