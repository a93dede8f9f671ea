"""Where the control plane finds what writes files whole; the data plane, which knows no control, has it too."""

from __future__ import annotations

from understudy.proxy.durable import replace_file as replace_file
