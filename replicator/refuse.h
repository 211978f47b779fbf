// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * refuse.h - how ftd's children say no. A guest that this host does not know gets no child of its own: one process
 * answers for all such names, so that strangers cannot make us start more than that one.
 */
#ifndef FT_REPLICATOR_REFUSE_H
#define FT_REPLICATOR_REFUSE_H

#include "ft/link.h"

/* May @peer replicate @guest to this host? FT_REASON_OK, or why not and one line. */
enum ft_wire_reason ft_refuse_stranger(const char *guest, const char *peer, char *why, size_t size);
/* There is no usable guest file here: @rc of ft_spec_load. */
enum ft_wire_reason ft_refuse_guest(const char *guest, int rc, char *why, size_t size);
/* Log it and send the WELCOME that refuses; the caller ends the link. */
void ft_refuse(struct ft_link *link, const char *guest, enum ft_wire_reason reason, const char *why);

/*
 * The process for guests that are unknown here: tells each peer so, and ends when nobody has come for a while.
 * @door: SOCK_SEQPACKET, listening; ftd passes connections and the names they brought. Returns an exit status.
 */
int ft_refuse_run(int door);
/* The door's path: RUN_DIR/unknown.sock. */
int ft_refuse_door(char *buf, size_t size) FT_MUST_CHECK;

#endif
