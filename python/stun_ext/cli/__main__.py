# SPDX-License-Identifier: Apache-2.0
"""``python -m stun_ext.cli``."""

from stun_ext.cli import main

if __name__ == "__main__":
    main()
