// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * conf.h - /etc/ft/ft.conf (INI, see ini.h) and the places where things lie. man ft.conf(5) describes each key.
 *
 *   [ft]                 this host
 *   [tls]                ca, cert, key
 *   [policy]             defaults of the epoch policy and failover
 *   [peer NAME]          address, heartbeat-addresses, guests it may replicate to us
 */
#ifndef FT_CONF_H
#define FT_CONF_H

#include "ft/base.h"

#define FT_PEERS_MAX 32
#define FT_PATH_MAX 256

enum ft_on_peer_loss { FT_LOSS_FREEZE, FT_LOSS_CONTINUE };

struct ft_peer {
	char name[FT_NAME_MAX + 1];             /* certificate name */
	char address[256];                      /* host or IP; empty: the name is resolved */
	char heartbeat[3][64];                  /* further IP addresses for heartbeats: four paths with the link's own */
	unsigned nr_heartbeat;
	char guests[1024];                      /* space-separated names it may replicate to this host, or "*" */
};

struct ft_policy {
	unsigned interval_max_ms;       /* 200: an epoch is never older; also the keep-alive of an idle guest */
	unsigned interval_fixed_ms;     /* 0: adaptive; else Remus's fixed interval, output does not trigger */
	unsigned dirty_max_mb;          /* 32: start a checkpoint at this much dirty memory (estimated) */
	unsigned pause_budget_percent;  /* 30: share of time that busy vCPUs may stand still */
	unsigned in_flight_max;         /* 4: sealed epochs not acknowledged; at most 15 */
	enum ft_on_peer_loss on_peer_loss; /* freeze */
	bool shadow;                    /* true: keep the last sent version of RAM for deltas */
	unsigned staging_mb;            /* 128 */
	unsigned disk_log_mb;           /* 64: what disks wrote and the backup has not acknowledged, in memory; */
	unsigned disk_spill_mb;         /* 4096: ... and in a file beside it; on a backup the bound of its journal */
	unsigned disk_copy_mb;          /* 0: a copy compares as many MB in a second; 0: as fast as it can */
	unsigned encode_threads;        /* 0: one per CPU, at most 4 */
	unsigned silence_ms;            /* 300; the backup's own setting is the one that counts */
	unsigned heartbeat_ms;          /* 30 */
	unsigned grace_ms;              /* 10000: so long the guard beats for a dead ft-protect before it gives up the guest */
	char hook[FT_PATH_MAX];         /* run at each change of state, or empty */
	char tracker[16];               /* auto */
};

struct ft_conf {
	char path[FT_PATH_MAX];         /* of the file that was read */
	char host[FT_NAME_MAX + 1];     /* our name; default: gethostname */
	char guests_dir[FT_PATH_MAX];   /* /etc/ft/guests */
	char state_dir[FT_PATH_MAX];    /* /var/lib/ft */
	char run_dir[FT_PATH_MAX];      /* /run/ft */
	char shm_dir[FT_PATH_MAX];      /* /dev/shm/ft: RAM files */
	char qemu[FT_PATH_MAX];         /* qemu-system-x86_64, searched in PATH */
	char nbdkit[FT_PATH_MAX];       /* nbdkit, searched in PATH */
	char libexec_dir[FT_PATH_MAX];  /* ft-guard, ft-preload.so, nbdkit-ft-plugin.so */
	char listen[64];                /* "::": an IP address without brackets */
	uint16_t port;                  /* 7800 */
	uint16_t heartbeat_port_min, heartbeat_port_max; /* 0: any */
	char tls_ca[FT_PATH_MAX], tls_cert[FT_PATH_MAX], tls_key[FT_PATH_MAX];
	struct ft_policy policy;
	unsigned nr_peers;
	struct ft_peer peer[FT_PEERS_MAX];
};

/*
 * Defaults, then @path (NULL: /etc/ft/ft.conf, which may be missing). Errors name file and line; -EINVAL.
 */
int ft_conf_load(const char *path, struct ft_conf *out) FT_MUST_CHECK;
/* -EINVAL: there is no tracker of that name. */
int ft_conf_set_tracker(struct ft_policy *policy, const char *name) FT_MUST_CHECK;
/* The process-wide configuration, set once by main after ft_conf_load; modules read directories from it. */
void ft_conf_set(const struct ft_conf *c);      /* copies */
/* Read the same file again; when it is not valid any more, what was valid stays and the log says what is wrong. */
void ft_conf_reload(void);
const struct ft_conf *ft_conf(void);            /* never NULL: defaults before ft_conf_set */
const struct ft_peer *ft_conf_peer(const struct ft_conf *c, const char *name);  /* NULL: no section */
bool ft_conf_permits(const struct ft_conf *c, const char *peer, const char *guest);
/* "RUN_DIR/guests/NAME/FILE" and the like. -ENAMETOOLONG. */
int ft_run_path(char *buf, size_t size, const char *guest, const char *file) FT_MUST_CHECK;

#endif
