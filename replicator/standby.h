// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * standby.h - ftd's child: one guest's replica. It serves that guest's connections, judges silence, takes
 * over, and outlives both its connections and the ftd that started it.
 */
#ifndef FT_REPLICATOR_STANDBY_H
#define FT_REPLICATOR_STANDBY_H

/*
 * Run until there is nothing left to keep. @listen_fd is the guest's door (SOCK_SEQPACKET, listening):
 * ftd passes further connections through it. @tcp_fd: the first connection. Takes over both.
 * Returns an exit status.
 */
int ft_standby_run(const char *guest, int listen_fd, int tcp_fd);

/* The door's path: RUN_DIR/guests/NAME/standby.sock. */
int ft_standby_door(const char *guest, char *buf, unsigned long size);

#endif
