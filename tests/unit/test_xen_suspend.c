// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_xen_suspend.c - a guest that answers the request to suspend late. Xen and xenstore are a fake's: what is defined here
 * comes before the libraries' own.
 */
#include "checkpoint/xen.h"
#include "ft/conf.h"
#include "tests/test.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <xen/hvm/params.h>
#include <xen/sched.h>
#include <xenguest.h>

static struct {
	char node[16];                  /* control/shutdown */
	_Atomic bool suspended;
	_Atomic bool answers;                   /* it suspends when it is looked at, and leaves what the node says */
	_Atomic unsigned resumed, inside;
	bool slow;                      /* resuming it takes a while */
	_Atomic bool twice_at_once;
} guest;

int xc_domain_getinfolist(xc_interface *xc, uint32_t first, unsigned max, xc_domaininfo_t *info)
{
	(void)xc, (void)max;
	*info = (xc_domaininfo_t){ .domain = (domid_t)first };
	if (guest.answers)
		guest.suspended = true;
	if (guest.suspended)
		info->flags = XEN_DOMINF_shutdown | SHUTDOWN_suspend << XEN_DOMINF_shutdownshift;
	else
		guest.answers = *guest.node;            /* asked once more: now it comes to the request before */
	return 1;
}

int xc_domain_resume(xc_interface *xc, uint32_t domid, int fast)
{
	(void)xc, (void)domid, (void)fast;
	if (guest.inside++)
		guest.twice_at_once = true;
	if (guest.slow)
		poll(NULL, 0, 50);
	guest.inside--;
	guest.suspended = guest.answers = false;
	guest.resumed++;
	return 0;
}

int xc_hvm_param_get(xc_interface *xc, uint32_t domid, uint32_t param, uint64_t *value)
{
	(void)xc, (void)domid;
	*value = param == HVM_PARAM_CALLBACK_IRQ;       /* it has Xen's drivers */
	return 0;
}

xs_transaction_t xs_transaction_start(struct xs_handle *xs)
{
	(void)xs;
	return 1;
}

bool xs_transaction_end(struct xs_handle *xs, xs_transaction_t t, bool abandon)
{
	(void)xs, (void)t, (void)abandon;
	return true;
}

void *xs_read(struct xs_handle *xs, xs_transaction_t t, const char *path, unsigned *len)
{
	(void)xs, (void)t, (void)path;
	*len = (unsigned)strlen(guest.node);
	return strdup(guest.node);
}

bool xs_write(struct xs_handle *xs, xs_transaction_t t, const char *path, const void *data, unsigned len)
{
	(void)xs, (void)t, (void)path;
	snprintf(guest.node, sizeof(guest.node), "%.*s", (int)len, (const char *)data);
	return true;
}

bool xs_resume_domain(struct xs_handle *xs, unsigned domid)
{
	(void)xs, (void)domid;
	return true;
}

int xs_fileno(struct xs_handle *xs)
{
	static int fd = -1;

	(void)xs;
	if (fd < 0)
		fd = eventfd(0, EFD_CLOEXEC);
	return fd;
}

char **xs_check_watch(struct xs_handle *xs)
{
	(void)xs;
	return NULL;
}

static struct ft_vm vm;
static struct xen_dom dom;
static struct xen_suspend suspend;

static void begin(void)
{
	struct ft_conf conf = *ft_conf();
	char dir[2 * FT_PATH_MAX];

	snprintf(conf.run_dir, sizeof(conf.run_dir), "%s/run", ft_test_dir());
	ft_conf_set(&conf);
	CHECK_OK(ft_run_path(dir, sizeof(dir), "vm1", ""));
	CHECK_OK(ft_mkdir_p(dir, 0700));
	memset(&guest, 0, sizeof(guest));
	dom = (struct xen_dom){ .guest = "vm1", .domid = 3, .xs = (struct xs_handle *)&dom, .ends = (struct xs_handle *)&dom };
	suspend = (struct xen_suspend){ .dom = &dom, .vm = &vm, .late = true };
}

TEST(a_guest_that_answers_an_old_request_is_not_left_with_a_new_one)
{
	begin();
	CHECK_OK(xen_suspend_begin(&suspend));
	CHECK(guest.suspended && !suspend.late);
	CHECK(!strcmp(guest.node, ""));
	CHECK_OK(xen_suspend_end(&suspend));
	CHECK(!guest.suspended);
}

TEST(a_suspend_that_comes_after_the_end_of_protection_is_ended)
{
	begin();
	guest.answers = true;
	xen_suspend_late(&suspend);
	CHECK_EQ(guest.resumed, 1);
	CHECK(!guest.suspended && !suspend.late);
	xen_suspend_late(&suspend);
	CHECK_EQ(guest.resumed, 1);
}

static void *end(void *ctx)
{
	struct xen_suspend own = suspend;

	*(int *)ctx = xen_suspend_end(&own);
	return NULL;
}

/* A guard that loses patience, and its ft-protect that wakes up. */
TEST(of_two_that_let_a_guest_run_at_once_one_does)
{
	int rc[2];
	pthread_t t[2];

	begin();
	suspend.late = false;
	guest.suspended = guest.slow = true;
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, end, &rc[i]), 0);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	CHECK(!guest.twice_at_once);
	CHECK_EQ(guest.resumed, 1);
	CHECK_EQ(rc[0] + rc[1], -ECANCELED);
}
