// SPDX-License-Identifier: GPL-3.0-or-later
/* main_ft-protect.c - ft-protect GUEST HOST: options, then protect.c. */
#include "protect.h"
#include "ft/hv.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>

enum { EXIT_USAGE_ERROR = 2 };

static const char usage[] =
	"usage: ft-protect [options] GUEST HOST\n"
	"Protect the running GUEST: replicate it to HOST, hold its output until HOST has it.\n"
	"Under Xen GUEST may be the number of its domain.\n"
	"\n"
	"  --check             name every obstacle, touch nothing; exit status 0 when there is none, else 3\n"
	"  --continue          when HOST is lost go on alone, unprotected (HOST then never takes over by itself)\n"
	"  --freeze            when HOST is lost keep output shut until it answers (default; HOST takes over)\n"
	"  --interval MS       a fixed checkpoint interval instead of the adaptive policy\n"
	"  --tracker NAME      auto, uffd-wp-async, soft-dirty or compare\n"
	"  --config FILE       instead of /etc/ft/ft.conf\n"
	"  --help, --version\n"
	"\n"
	"SIGINT or SIGTERM end protection in order; the guest runs on.\n"
	"Exit status: 0 protection ended in order, 1 internal error, 2 usage, 3 cannot be protected,\n"
	"4 HOST is unreachable or refuses, 5 HOST has taken over and our instance was stopped.\n";

struct options {
	const char *config, *tracker;
	bool check, go_on, freeze;
	unsigned interval_ms;
};

static int parse_number(const char *text, unsigned *out)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	if (!*text || *end || v < 1 || v > 60000)
		return -EINVAL;
	*out = (unsigned)v;
	return 0;
}

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "check", no_argument, NULL, 'n' }, { "continue", no_argument, NULL, 'c' },
		{ "freeze", no_argument, NULL, 'f' }, { "interval", required_argument, NULL, 'i' },
		{ "tracker", required_argument, NULL, 't' }, { "config", required_argument, NULL, 'C' },
		{ "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' }, { 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'n': o->check = true; break;
		case 'c': o->go_on = true; break;
		case 'f': o->freeze = true; break;
		case 't': o->tracker = optarg; break;
		case 'C': o->config = optarg; break;
		case 'h': fputs(usage, stdout); return 0;
		case 'V': puts("ft-protect " FT_VERSION); return 0;
		case 'i':
			if (!parse_number(optarg, &o->interval_ms))
				break;
			fprintf(stderr, "ft-protect: --interval takes 1 to 60000 ms, not '%s'\n", optarg);
			return EXIT_USAGE_ERROR;
		default:
			return EXIT_USAGE_ERROR;
		}
	}
	if (argc - optind == 1) {
		fprintf(stderr, "ft-protect: which host shall keep the replica? ft-protect %s HOST (ft-protect --help says more)\n",
			argv[optind]);
		return EXIT_USAGE_ERROR;
	}
	if (o->go_on && o->freeze) {
		fprintf(stderr, "ft-protect: --continue and --freeze exclude each other\n");
		return EXIT_USAGE_ERROR;
	}
	if (argc - optind != 2) {
		fputs(usage, stderr);
		return EXIT_USAGE_ERROR;
	}
	if (!ft_name_ok(argv[optind]) || !ft_name_ok(argv[optind + 1])) {
		fprintf(stderr, "ft-protect: '%s' is not a valid name: letters, digits, '.', '_', '-', at most %d\n",
			ft_name_ok(argv[optind]) ? argv[optind + 1] : argv[optind], FT_NAME_MAX);
		return EXIT_USAGE_ERROR;
	}
	return -1;
}

static int check(const char *guest, const char *peer)
{
	static struct protect pr;
	int obstacles = protect_check(&pr, guest, peer);

	if (obstacles)
		printf("%s: %d obstacle%s\n", guest, obstacles, obstacles == 1 ? "" : "s");
	else
		printf("%s: can be protected towards %s\n", guest, peer);
	protect_close(&pr);
	return obstacles ? FT_END_OBSTACLE : FT_END_OK;
}

static int protect(const char *guest, const char *peer, const struct ft_policy *policy)
{
	static struct protect pr;
	int status = protect_open(&pr, guest, peer, policy);

	if (!status) {
		if (policy->on_peer_loss == FT_LOSS_FREEZE)
			ft_info("%s: policy `freeze`: if %s dies or is cut off, the guest's clients wait until it is back", guest, peer);
		else
			ft_warn("%s: policy `continue`: if %s is lost the guest runs on UNPROTECTED, and %s will not take over "
				"by itself", guest, peer, peer);
		status = protect_run(&pr);
	}
	protect_close(&pr);
	return status;
}

/* A guest may be called by a number, too. */
static const char *name_of(const char *guest, char buf[FT_NAME_MAX + 1])
{
	char *end;
	unsigned long domid = strtoul(guest, &end, 10);

	if (*end || !domid || domid > UINT16_MAX || ft_spec_exists(guest) || ft_xen_name((uint32_t)domid, buf))
		return guest;
	return buf;
}

int main(int argc, char **argv)
{
	char name[FT_NAME_MAX + 1];
	const char *guest;
	struct options o = { 0 };
	static struct ft_conf conf;
	struct ft_policy policy;
	int status;

	ft_log_init("ft-protect");
	signal(SIGPIPE, SIG_IGN);
	status = parse_options(argc, argv, &o);
	if (status >= 0)
		return status;
	if (ft_conf_load(o.config, &conf))
		return EXIT_USAGE_ERROR;
	ft_conf_set(&conf);
	if (!strcmp(argv[optind + 1], conf.host)) {
		fprintf(stderr, "ft-protect: %s is this host: name the one that shall keep the replica\n", conf.host);
		return EXIT_USAGE_ERROR;
	}
	policy = conf.policy;
	if (o.go_on || o.freeze)
		policy.on_peer_loss = o.go_on ? FT_LOSS_CONTINUE : FT_LOSS_FREEZE;
	if (o.interval_ms)
		policy.interval_fixed_ms = o.interval_ms;
	if (o.tracker && ft_conf_set_tracker(&policy, o.tracker)) {
		fprintf(stderr, "ft-protect: --tracker takes auto, uffd-wp-async, soft-dirty or compare, not '%s'\n", o.tracker);
		return EXIT_USAGE_ERROR;
	}
	guest = name_of(argv[optind], name);
	return o.check ? check(guest, argv[optind + 1]) : protect(guest, argv[optind + 1], &policy);
}
