#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# The soft-dirty tracker, on a kernel that has soft-dirty bits, and what it stands on; write protection, too, where
# that kernel has it.
here=$(dirname "$0")
program=${FT_OBJ:-$here/../../build/obj}/tests/test_tracker
kernel=$("$here/../kernel.sh") || { echo "1..0 # SKIP no kernel for the guest"; exit 77; }
release=$(ls "$kernel/lib/modules")
set -- "$program:softdirty" "$program:froz" "$program:freez" "$program:auto"
if [ "$(printf '%s\n' 6.7 "$release" | sort -V | head -1)" = 6.7 ]; then
	set -- "$@" "$program:uffd"
fi
exec "$here/run.sh" "$@"
