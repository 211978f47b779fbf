#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Output commit on a distribution kernel: nf_tables' queue for bridges, and modules that come when asked for.
here=$(dirname "$0")
tests=${FT_OBJ:-$here/../../build/obj}/tests
loaded="tun veth bridge br_netfilter nf_tables nfnetlink_queue"
on_demand="nft_queue nft_objref nft_meta_bridge nft_limit nft_ct nft_reject_bridge nft_compat xt_NFQUEUE xt_physdev"
# shellcheck disable=SC2046
exec "$here/run.sh" $(printf -- ' -m %s' $loaded) $(printf -- ' -a %s' $on_demand) -x nft "$tests/test_netbuf"
