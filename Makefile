# SPDX-License-Identifier: GPL-3.0-or-later
# One Makefile, no recursion. `make help` lists the targets.
VERSION := 0.1.0
MODULES := replicator checkpoint netbuf diskmirror failover
PREFIX  ?= /usr/local
LIBEXEC ?= $(PREFIX)/libexec/ft
# Where Xen's tools look for hotplug scripts, whatever our prefix is.
XENDIR  ?= /etc/xen/scripts
# make's own default is a `cc` that may not be there.
ifeq ($(origin CC),default)
CC      := gcc
endif
comma   := ,
BUILD   ?= build
B       := $(BUILD)/$(if $(SAN),san-$(subst $(comma),-,$(SAN)),obj)

# The Xen backend needs libxen-dev, of Xen 4.17 or later; XEN=0 leaves it out.
override XEN := $(if $(filter 0,$(XEN)),,$(shell pkg-config --modversion xencontrol 2>/dev/null))
NOT     := $(if $(XEN),checkpoint/xen_absent.c,$(filter-out checkpoint/xen_absent.c checkpoint/xen_pages.c checkpoint/xen_parts.c,$(wildcard checkpoint/xen_*.c)))

# Mains are <module>/main_<program>.c; preload.c and nbdkit's plugin become shared objects; the rest is the library.
MAINS   := $(wildcard $(MODULES:%=%/main_*.c))
PROGS   := $(patsubst main_%.c,$(B)/bin/%,$(notdir $(MAINS)))
PRELOAD := $(if $(wildcard checkpoint/preload.c),$(B)/bin/ft-preload.so)
NBDKIT  := diskmirror/nbdkit-ft-plugin.c
PLUGIN  := $(if $(shell $(CC) -DNBDKIT_API_VERSION=2 -include nbdkit-plugin.h -x c -E /dev/null >/dev/null 2>&1 && echo yes),$(B)/bin/nbdkit-ft-plugin.so)
SCRIPTS := $(patsubst replicator/%.sh,$(B)/bin/%,$(wildcard replicator/ft-*.sh))
LIB     := $(patsubst %.c,$(B)/%.o,$(filter-out $(MAINS) $(NBDKIT) $(NOT) checkpoint/preload.c,$(wildcard $(MODULES:%=%/*.c))))
# The one that takes longest is begun first.
TESTS   := $(patsubst tests/unit/%.c,$(B)/tests/%,tests/unit/test_sim.c $(filter-out %/test_sim.c $(if $(XEN),,%/test_xen_cpu.c %/test_xen_find.c %/test_xen_saver.c %/test_xen_suspend.c),$(wildcard tests/unit/test_*.c)))
TESTLIB := $(patsubst %.c,$(B)/%.o,$(wildcard tests/lib/*.c))
SIMLIB  := $(patsubst %.c,$(B)/%.o,$(wildcard tests/sim/*.c))
HOSTC   := $(patsubst tests/hosts/%.c,$(B)/hosts/%,$(wildcard tests/hosts/test_*.c))
TOOLS   := $(patsubst tests/tools/%.c,$(B)/tools/%,$(wildcard tests/tools/*.c))
XENTOOLS := $(if $(XEN),$(patsubst tests/xen/%.c,$(B)/xen/%,$(wildcard tests/xen/*.c)))
BENCHES := $(patsubst tests/bench/%.c,$(B)/bench/%,$(wildcard tests/bench/*.c))

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wwrite-strings \
           -Wvla -Wformat=2 -Wno-unused-parameter
CFLAGS  ?= -O2 -g
override CFLAGS += -std=gnu11 -D_GNU_SOURCE -DFT_VERSION='"$(VERSION)"' -DFT_LIBEXEC='"$(LIBEXEC)"' -DFT_XEN_SCRIPTS='"$(XENDIR)"' \
           -Iinclude -I. -MMD -MP \
           $(WARN) $(if $(filter 0,$(WERROR)),,-Werror) -fstack-protector-strong -pthread \
           $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
LDLIBS  := -lev -ljansson -llz4 -lxxhash -lssl -lcrypto -lnetfilter_queue -lnftnl -lmnl -lnfnetlink -lnbd $(if $(XEN),-Wl$(comma)--as-needed -lxenctrl -lxenguest -lxenforeignmemory -lxendevicemodel -lxenstore) -pthread

# As many at a time as there are processors, unless -j says otherwise.
QUIETLY  = -s --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
# One short line a file; V=1 shows the commands.
say      = $(if $(V),,@echo "  $(if $(filter %.o,$@),CC,LD)  $@";)

.PHONY: all xen-says help bench bench-xen check-xen deps check check-debian13 check-root check-unit check-vm clean demo fuzz fuzzers guest install lint no-plugin sim soak stage tests uninstall FORCE
all: $(PROGS) $(PRELOAD) $(or $(PLUGIN),no-plugin) $(SCRIPTS) | xen-says
xen-says:
	@echo "Xen backend: $(if $(XEN),Xen $(XEN),none (libxen-dev is not installed))"

help:
	@sed -n 's/^#: //p' Makefile

#: make deps         install what is needed to build (root, Debian)
#: make              build everything into build/
#: make check        install what is needed, build, run every test
#: make check-unit   unit tests and the simulation only (no root needed)
#: make demo         protect a real guest, cut the power, show that nothing is lost
#: make bench        measure (QUICK=1: under a minute)
#: make install      programs, manual pages, systemd units and examples (DESTDIR= PREFIX=/usr/local)
#: make uninstall    take them away again; configuration and state stay
#: make lint         static analysis
#: SAN=address,undefined or SAN=thread with any of them: sanitizers

deps:
	scripts/deps.sh build

# What is missing is named at once, with the way to get it, and not by the compiler, one header at a time.
HEADERS := ev.h jansson.h lz4.h xxhash.h openssl/ssl.h libnetfilter_queue/libnetfilter_queue.h libnftnl/table.h \
           libmnl/libmnl.h libnfnetlink/libnfnetlink.h libnbd.h
TOLD    := $(B)/can-be-built
$(TOLD):
	@mkdir -p $(@D)
	@printf '\043include <%s>\n' stdint.h $(HEADERS) | $(CC) -E -x c - >/dev/null 2>$@.why || { \
		sed -n '/rror: /s/.*rror: //p;/not found/p' $@.why >&2; \
		echo "ft cannot be built here; as root: make deps   (Debian: apt-get install$$(DEPS_PRINT=missing scripts/deps.sh build))" >&2; \
		exit 1; }
	@rm -f $@.why; touch $@

$(B)/%.o: %.c | $(TOLD)
	@mkdir -p $(@D)
	$(say) $(CC) $(CFLAGS) -c -o $@ $<

# Where the helpers will lie is compiled in: another PREFIX compiles that file anew, `make install PREFIX=` included.
$(B)/libexec: FORCE
	@mkdir -p $(@D)
	@echo '$(LIBEXEC)' | cmp -s - $@ || echo '$(LIBEXEC)' >$@
$(B)/replicator/conf.o: $(B)/libexec
FORCE:

# An archive, so that a program links only what it uses.
$(B)/libft.a: $(LIB)
	@mkdir -p $(@D)
	@rm -f $@
	@$(AR) rcs $@ $(LIB)

define prog_rule
$(B)/bin/$(patsubst main_%.c,%,$(notdir $(1))): $(patsubst %.c,$(B)/%.o,$(1)) $(B)/libft.a
	@mkdir -p $$(@D)
	$$(say) $$(CC) $$(CFLAGS) -o $$@ $$^ $$(LDFLAGS) $$(LDLIBS)
endef
$(foreach m,$(MAINS),$(eval $(call prog_rule,$(m))))

# Loaded into QEMU: never sanitized, no library of ours.
$(B)/bin/ft-preload.so: checkpoint/preload.c
	@mkdir -p $(@D)
	$(say) $(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -fPIC -shared -o $@ $< -ldl

# Loaded into nbdkit, with what it needs of the library: never sanitized.
PICOBJ  := $(patsubst %.c,$(B)/pic/%.o,$(NBDKIT) $(wildcard diskmirror/export*.c) diskmirror/disk.c diskmirror/diskfile.c \
           diskmirror/map.c replicator/base.c replicator/thread.c)
$(B)/pic/%.o: %.c | $(TOLD)
	@mkdir -p $(@D)
	$(say) $(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -fPIC -fvisibility=hidden -c -o $@ $<
$(B)/bin/nbdkit-ft-plugin.so: $(PICOBJ)
	@mkdir -p $(@D)
	$(say) $(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -shared -o $@ $^ $(LDFLAGS) -llz4 -lxxhash -pthread
no-plugin:
	@echo "  nbdkit-plugin.h is not installed (nbdkit-plugin-dev): guests cannot have mirrored disks" >&2

$(B)/bin/ft-%: replicator/ft-%.sh
	@mkdir -p $(@D)
	$(say) sed 's/@VERSION@/$(VERSION)/' $< >$@ && chmod 755 $@

$(B)/tests/%: tests/unit/%.c $(TESTLIB) $(B)/libft.a
	@mkdir -p $(@D)
	$(say) $(CC) $(CFLAGS) -Itests -o $@ $(filter %.c %.o,$^) $(B)/libft.a $(LDFLAGS) $(LDLIBS)

$(B)/tests/test_sim $(B)/tests/test_protocol: $(SIMLIB)

$(B)/hosts/%: tests/hosts/%.c $(TESTLIB) $(B)/libft.a
	@mkdir -p $(@D)
	$(say) $(CC) $(CFLAGS) -Itests -o $@ $(filter %.c %.o %.a,$^) $(LDFLAGS) $(LDLIBS)

# Never sanitized: they are the machinery around what is tested, and LeakSanitizer fails under their ptrace.
$(B)/tools/%: tests/tools/%.c
	@mkdir -p $(@D)
	$(say) $(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -o $@ $< $(LDFLAGS) -pthread

$(B)/tools/eio.so: tests/hosts/eio.c
	@mkdir -p $(@D)
	$(say) $(CC) $(filter-out -fsanitize=%,$(CFLAGS)) -fPIC -shared -o $@ $< -ldl

$(B)/xen/%: tests/xen/%.c $(B)/libft.a
	@mkdir -p $(@D)
	$(say) $(CC) $(CFLAGS) -o $@ $< $(B)/libft.a $(LDFLAGS) $(LDLIBS)

$(B)/bench/%: tests/bench/%.c $(B)/libft.a
	@mkdir -p $(@D)
	$(say) $(CC) $(CFLAGS) -Itests -o $@ $(filter %.c %.o %.a,$^) $(LDFLAGS) $(LDLIBS)

tests: $(TESTS) $(HOSTC) $(TOOLS) $(B)/tools/eio.so

# What a user's `make install` makes, for the hosts of the test world.
STAGE   := $(B)/stage
stage: all
	@rm -rf $(STAGE)
	@$(MAKE) -s --no-print-directory install DESTDIR=$(STAGE) PREFIX=/usr/local LIBEXEC=/usr/local/libexec/ft

# Programs that other programs start live in libexec.
HELPERS := $(filter %/ft-guard,$(PROGS)) $(PRELOAD) $(PLUGIN)
USERS   := $(filter-out $(HELPERS),$(PROGS)) $(SCRIPTS)
UNITS   := $(wildcard etc/systemd/*.service)
UNITDIR ?= $(PREFIX)/lib/systemd/system
MANDIR  ?= $(PREFIX)/share/man
DOCDIR  ?= $(PREFIX)/share/doc/ft
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(LIBEXEC) $(DESTDIR)$(UNITDIR) $(DESTDIR)$(DOCDIR)/examples
	install -d $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man8
	install -m 755 -t $(DESTDIR)$(PREFIX)/bin $(USERS)
	install -m 755 -t $(DESTDIR)$(LIBEXEC) $(HELPERS)
	install -m 644 -t $(DESTDIR)$(MANDIR)/man5 man/*.5
	install -m 644 -t $(DESTDIR)$(MANDIR)/man8 man/*.8
	install -m 644 -t $(DESTDIR)$(DOCDIR) README.md LICENSE docs/*.md
	install -m 644 -t $(DESTDIR)$(DOCDIR)/examples etc/ft.conf etc/guests/vm1.conf
	for u in $(notdir $(UNITS)); do sed 's,/usr/local/bin,$(PREFIX)/bin,' etc/systemd/$$u >$(DESTDIR)$(UNITDIR)/$$u && \
		chmod 644 $(DESTDIR)$(UNITDIR)/$$u || exit 1; done
	$(if $(XEN),install -d $(DESTDIR)$(XENDIR) && sed 's|@BIN@|$(PREFIX)/bin|' etc/xen/block-ft >$(DESTDIR)$(XENDIR)/block-ft && \
		chmod 755 $(DESTDIR)$(XENDIR)/block-ft)

uninstall:
	rm -f $(DESTDIR)$(XENDIR)/block-ft
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(notdir $(USERS))) $(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(UNITS)))
	rm -f $(foreach n,5 8,$(addprefix $(DESTDIR)$(MANDIR)/man$(n)/,$(notdir $(wildcard man/*.$(n)))))
	rm -rf $(DESTDIR)$(LIBEXEC) $(DESTDIR)$(DOCDIR)

# The guest of the demo and of the host tests.
GUEST   := $(BUILD)/guest
guest: $(GUEST)/initrd.img
$(GUEST)/initrd.img: tests/hosts/mkguest.sh tests/kernel.sh $(wildcard tests/guest/*)
	tests/hosts/mkguest.sh $(GUEST)

demo:
	scripts/deps.sh build check
	@$(MAKE) $(QUIETLY) all tests stage guest
	@tests/hosts/demo.py

# Each prints one JSON object a line.
bench:
	scripts/deps.sh build check
	@$(MAKE) $(QUIETLY) all tests $(BENCHES) stage guest
	@tests/bench/bench.py

check-unit: all tests
	tests/run.sh $(TESTS) --

# Host tests are programs that speak TAP too. HOSTS="tests/hosts/test_power.py" picks some.
HOSTS   ?= $(HOSTC) $(sort $(wildcard tests/hosts/test_*.py))
# Unit tests that need more than this kernel may have, inside a distribution's.
VMTESTS ?= $(sort $(wildcard tests/vm/test_*.sh))
export BUILD
export FT_OBJ = $(abspath $(B))
export FT_GUEST = $(abspath $(GUEST))
export PYTHONDONTWRITEBYTECODE := 1
check:
	scripts/deps.sh build check
	@$(MAKE) $(QUIETLY) all tests fuzzers stage guest
	@tests/run.sh $(TESTS) tests/fuzz/fuzz.sh $(VMTESTS) -- $(HOSTS)

#: make sim          simulated lives of a protected guest (SEEDS=20000)
SEEDS ?= 20000
sim: $(B)/tests/test_sim
	SIM_SEEDS=$(SEEDS) TEST_TIMEOUT=36000 tests/run.sh $<

#: make check-vm     unit tests inside a distribution kernel (QEMU, no root needed)
check-vm: tests
	tests/run.sh $(VMTESTS)

#: make check-root   host tests on real guests only (root)
check-root: all tests stage guest
	tests/run.sh $(HOSTS)

#: make check-xen    two real Xen hosts under emulation (root, libxen-dev; fetches some 100 MB once); XEN_RELEASE=trixie: Debian 13's Xen
XENTESTS ?= $(sort $(wildcard tests/xen/test_*.py))
ifeq ($(XEN_RELEASE),trixie)
check-xen bench-xen:
	scripts/deps.sh debian13
	scripts/debian13.sh $@
else
check-xen:
	scripts/deps.sh build check xen
	@$(MAKE) $(QUIETLY) all tests $(XENTOOLS) stage
	TEST_TIMEOUT=3600 tests/run.sh $(XENTESTS)

#: make bench-xen    the same hosts, ft against xl remus
bench-xen:
	scripts/deps.sh build check xen
	@$(MAKE) $(QUIETLY) all tests $(XENTOOLS) stage
	@tests/xen/bench.py
endif

#: make soak         power cuts and the whole table of dying processes (SOAK_CUTS=50)
SOAK_CUTS ?= 50
soak: all tests stage guest
	SOAK_CUTS=$(SOAK_CUTS) SOAK_DISK_CUTS=$(SOAK_CUTS) SOAK_TABLE=1 TEST_TIMEOUT=36000 \
	tests/run.sh tests/hosts/test_power.py tests/hosts/test_mirror.py tests/hosts/test_processes.py

# Every parser of foreign bytes has a fuzz_*.c. Library and fuzzers are built with clang into a tree of their own.
FUZZ_CC   ?= clang
F         := $(BUILD)/fuzz
FUZZERS   := $(patsubst tests/fuzz/%.c,$(F)/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZFLAGS := $(filter-out -fsanitize=%,$(CFLAGS)) -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
$(F)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(say) $(FUZZ_CC) $(FUZZFLAGS) -fsanitize=fuzzer-no-link -c -o $@ $<
$(F)/libft.a: $(LIB:$(B)/%=$(F)/obj/%)
	@rm -f $@
	@$(AR) rcs $@ $^
$(F)/fuzz_%: $(F)/obj/tests/fuzz/fuzz_%.o $(F)/libft.a
	$(say) $(FUZZ_CC) $(FUZZFLAGS) -fsanitize=fuzzer -o $@ $^ $(LDFLAGS) $(LDLIBS)

#: make fuzz         run every fuzzer (FUZZ_SECONDS=10 each; FUZZ_KEEP=1 keeps what reached new code)
export FUZZ_SECONDS ?= 10
fuzzers: $(FUZZERS)
fuzz: $(FUZZERS)
	@tests/fuzz/fuzz.sh $(FUZZERS)

# What git knows, or all there is in a tree without git. LINTED="one.c other.c" picks some.
LINTED  ?= $(or $(shell git ls-files '*.c' 2>/dev/null),$(wildcard $(MODULES:%=%/*.c) tests/*/*.c))
lint:
	scripts/deps.sh build lint
	@scripts/lint.sh $(filter -D% -I% -std=%,$(CFLAGS)) -Itests -- $(LINTED)

#: make check-debian13   build and test on Debian 13 in a tree of its own (root; fetches some hundred MB once)
check-debian13:
	scripts/deps.sh debian13
	scripts/debian13.sh

clean:
	rm -rf build

-include $(shell find $(B) $(F) -name '*.d' 2>/dev/null)
# Kept between runs. Not .SECONDARY: with it a new source that is older than the archive would be left out of it.
.PRECIOUS: $(B)/%.o $(F)/obj/%.o $(B)/pic/%.o
