#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# The soft-dirty tracker, on a kernel that has soft-dirty bits, and what it stands on.
here=$(dirname "$0")
tests=${FT_OBJ:-$here/../../build/obj}/tests
exec "$here/run.sh" "$tests/test_tracker:softdirty" "$tests/test_tracker:froz" "$tests/test_tracker:freez" "$tests/test_tracker:auto"
