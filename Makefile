# `make demo` and `make test` need Python >= 3.11 with venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
ARGS ?=
# What `make install` installs; a control host of a fleet also needs `fleet`.
EXTRAS ?= daemon,cli

# `sudo make install` puts the daemon and its units on this host; DESTDIR is for packagers.
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
# Where systemd looks: under /usr and /usr/local it finds what lies beside the program.
SYSTEMD_LIB ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,/etc)
# Each install is a release: a virtual environment in a directory of its own. The symlinks `current`
# and `previous` in HOME_OF name two of them, and `trackd` runs what `current` names.
HOME_OF = $(PREFIX)/lib/trackd
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' client/trackd_client/_version.py)
RELEASE := $(VERSION)-$(shell date +%Y%m%d%H%M%S)
NEW = $(HOME_OF)/$(RELEASE)
CURRENT = $(HOME_OF)/current
DOC_OF = $(PREFIX)/share/doc/trackd
MAN_OF = $(PREFIX)/share/man/man1
UNITS = $(SYSTEMD_LIB)/systemd/system
SYSUSERS = $(SYSTEMD_LIB)/sysusers.d/trackd.conf
TMPFILES = $(SYSTEMD_LIB)/tmpfiles.d/trackd.conf
ETC = $(SYSCONFDIR)/trackd
EXAMPLE = $(ETC)/trackd.toml
# Only where the host itself is meant, and it runs systemd.
ON_HOST = [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-fleet ssh-lab test torture fuzz soak mutants coverage check format lint types fast fleet bench bench-quick bench-coverage bench-ssh plots man clean install rollback \
	uninstall test-systemd test-fleet

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

venv: $(STAMP) ## create the virtual environment

ssh-lab: $(STAMP) ## ssh tunnels to three bastions behind a balancer, on loopback (needs sshd, haproxy)
	$(BIN)/python docs/examples/ssh/laboratory.py

demo: $(STAMP) ## a daemon and real agents against simulated proxies (ARGS="--plain --agents 8")
	$(BIN)/trackd demo $(ARGS)

demo-fleet: $(STAMP) ## agents of three hosts, one tracker on etcd, and who dies (needs apt; ARGS="--plain --seed 7")
	PYTHONPATH=tests $(BIN)/python -m fleet.demo $(ARGS)

test: $(STAMP) ## every test except those of test-systemd and test-fleet (ARGS="-k word")
	$(BIN)/python -m pytest --ignore=tests/systemd --ignore=tests/fleet $(ARGS)

# The long forms of tests that have a short one in `make test`; docs/reliability.md has their figures.
TORTURED = tests/faults/test_daemon_kills.py tests/histories
TORTURED_FLEETS = $(addprefix tests/fleet/test_,random_faults.py takeover.py kills.py scale.py models.py simulation.py)
# Where the tests are that hold on both stores; with `--store=etcd` those alone run, in a fleet.
BOTH_STORES = tests/integration tests/faults tests/histories

torture: $(STAMP) ## the long forms of the tests that try to break it: hours (ARGS="--minutes 60 --seed 5")
	PYTHONPATH=tests $(BIN)/python -m storm $(ARGS)
	TRACKD_TORTURE=1 $(BIN)/python -m pytest -s $(TORTURED)
	$(BIN)/python tests/fleet/etcd_program.py
	TRACKD_TORTURE=1 $(BIN)/python -m pytest -s --store=etcd $(TORTURED_FLEETS) $(BOTH_STORES)
	PYTHONPATH=tests $(BIN)/python -m fuzz
	PYTHONPATH=tests $(BIN)/python -m simulation --statements 300 --seeds 3000
	PYTHONPATH=tests $(BIN)/python -m simulation --seeds 20 --seconds 3600

fuzz: $(STAMP) ## a million inputs that are almost right (ARGS="--only state --seed 7")
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

soak: $(STAMP) ## a daemon under load for long: does anything of it grow? (MINUTES=60)
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(or $(MINUTES),60) --json build/soak.json

mutants: $(STAMP) ## mistakes in a module that none of its fast tests notices (ARGS="daemon/trackd/rules/marks.py")
	PYTHONPATH=tests nice $(BIN)/python -m mutation $(ARGS)

coverage: $(STAMP) ## lines and branches that tests reach, in all processes (ARGS="tests/unit")
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q --numprocesses=2 --dist=worksteal $(or $(ARGS),tests/unit tests/model tests/integration tests/faults)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

check: lint types fast ## format, lint, types, fast tests: before every commit

format: $(STAMP) ## format the code, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP) ## check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## mypy --strict over both packages and the tests
	$(BIN)/mypy

fast: $(STAMP) ## the fast tests, less than a minute together
	$(BIN)/python -m pytest -q -m 'not slow' tests/unit tests/model

test-systemd: $(STAMP) ## test the units in a booted systemd of their own (needs root, mmdebstrap, systemd-nspawn)
	$(BIN)/python -m pytest tests/systemd $(ARGS)

test-fleet: $(STAMP) ## test against three members of etcd, had from Debian's archive (needs apt)
	$(BIN)/python tests/fleet/etcd_program.py
	$(BIN)/python -m pytest --store=etcd tests/fleet $(BOTH_STORES) $(ARGS)

# One rename gives a symlink another target, so that there is one at every moment.
# $(call point,LINK,TARGET)
point = ln -sfn "$(2)" "$(1).new" && mv -T "$(1).new" "$(1)"

# Builds a release beside those that exist, and proves it before anything runs it. A virtual
# environment cannot be moved: with DESTDIR, the paths in it are replaced by the final ones.
define BUILD
$(PYTHON) -m venv "$$new" && \
"$$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile '.[$(EXTRAS)]' && \
"$$new/bin/trackd" --version && \
"$$new/bin/trackctl" --version && \
"$$new/bin/trackd" check-config systemd/trackd.toml && \
"$$new/bin/python" -m trackd_client.cli.man "$$new/share/man" && \
install -d "$$new/share/units" && \
sed "s#/usr/local/#$(PREFIX)/#g" systemd/trackd@.service >"$$new/share/units/trackd@.service" && \
sed "s#/usr/local/#$(PREFIX)/#g" systemd/trackd@.socket >"$$new/share/units/trackd@.socket" && \
sed "s#/usr/local/#$(PREFIX)/#g" systemd/trackd-lead@.service >"$$new/share/units/trackd-lead@.service" && \
find "$$new" -name __pycache__ -prune -exec rm -rf {} + && \
"$$new/bin/python" -m compileall -q $(if $(DESTDIR),-s "$(DESTDIR)" -p /) "$$new/lib" && \
{ test -z "$(DESTDIR)" || { grep -rlIF -- "$(DESTDIR)$(HOME_OF)" "$$new/bin" "$$new/pyvenv.cfg" | \
	xargs -r sed -i "s#$(DESTDIR)$(HOME_OF)#$(HOME_OF)#g"; }; }
endef

# Puts the units and the manual page of the current release where the host looks for them.
define SHOW_CURRENT
install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITS)" "$(DESTDIR)$(MAN_OF)"
$(call point,$(DESTDIR)$(PREFIX)/bin/trackd,$(CURRENT)/bin/trackd)
$(call point,$(DESTDIR)$(PREFIX)/bin/trackctl,$(CURRENT)/bin/trackctl)
install -m 644 "$(DESTDIR)$(CURRENT)"/share/units/* "$(DESTDIR)$(UNITS)"
install -m 644 "$(DESTDIR)$(CURRENT)"/share/man/* "$(DESTDIR)$(MAN_OF)"
endef

install: ## build a release, prove it, and switch to it; units, documents (as root; PREFIX, DESTDIR)
	umask 022 && new="$(DESTDIR)$(NEW)" && mkdir -p "$(DESTDIR)$(HOME_OF)" && { \
		$(BUILD); \
	} || { rm -rf "$(DESTDIR)$(NEW)"; echo "trackd: nothing was installed or changed" >&2; exit 1; }
	cd "$(DESTDIR)$(HOME_OF)" && if [ -L current ]; then $(call point,previous,$$(readlink current)); fi
	cd "$(DESTDIR)$(HOME_OF)" && $(call point,current,$(RELEASE))
	$(SHOW_CURRENT)
	install -D -m 644 systemd/trackd.sysusers "$(DESTDIR)$(SYSUSERS)"
	install -D -m 644 systemd/trackd.tmpfiles "$(DESTDIR)$(TMPFILES)"
	install -D -m 644 -t "$(DESTDIR)$(DOC_OF)" docs/*.md docs/*.png docs/*.yml docs/*.json \
		systemd/trackd.toml systemd/http-over-tcp.conf systemd/relay.conf
	install -D -m 644 -t "$(DESTDIR)$(DOC_OF)/incidents" docs/incidents/*.py
	install -D -m 755 -t "$(DESTDIR)$(DOC_OF)/examples" docs/examples/*.py docs/examples/*.sh
	install -D -m 644 -t "$(DESTDIR)$(DOC_OF)/examples" docs/examples/*.service
	install -D -m 755 -t "$(DESTDIR)$(DOC_OF)/examples/ssh" docs/examples/ssh/*.sh \
		docs/examples/ssh/*.py
	install -D -m 644 -t "$(DESTDIR)$(DOC_OF)/examples/ssh" docs/examples/ssh/*.cfg \
		docs/examples/ssh/*_config
	install -d "$(DESTDIR)$(ETC)"
	test -e "$(DESTDIR)$(EXAMPLE)" || install -m 644 systemd/trackd.toml "$(DESTDIR)$(EXAMPLE)"
	if $(ON_HOST); then \
		systemd-sysusers "$(SYSUSERS)" && systemd-tmpfiles --create "$(TMPFILES)" && systemctl daemon-reload; \
	fi
	cd "$(DESTDIR)$(HOME_OF)" && for old in *; do \
		case "$$old" in current | previous | "$$(readlink current)" | "$$(readlink previous)") ;; \
		*) rm -rf "$$old" ;; esac; \
	done

rollback: ## switch back to the release before the last install; once more switches forward
	test -x "$(DESTDIR)$(HOME_OF)/previous/bin/trackd" || { echo "there is no previous release" >&2; exit 1; }
	test -n "$(DESTDIR)" || "$(HOME_OF)/previous/bin/trackd" --version
	cd "$(DESTDIR)$(HOME_OF)" && now="$$(readlink current)" && \
		$(call point,current,$$(readlink previous)) && $(call point,previous,$$now)
	$(SHOW_CURRENT)
	if $(ON_HOST); then systemctl daemon-reload; fi

uninstall: ## stop every instance, and remove what install put there; changed configuration stays
	if $(ON_HOST); then \
		systemctl stop 'trackd@*.socket' 'trackd@*.service' 'trackd-lead@*.service'; \
		systemctl disable trackd@.socket trackd@.service trackd-lead@.service; \
		systemctl reset-failed 'trackd@*' 'trackd-lead@*' || true; \
		rm -rf /run/trackd /run/trackd-lead; \
	fi
	if cmp -s systemd/trackd.toml "$(DESTDIR)$(EXAMPLE)"; then rm "$(DESTDIR)$(EXAMPLE)"; fi
	rmdir "$(DESTDIR)$(ETC)" || echo "kept: $(DESTDIR)$(ETC)"
	rm -rf "$(DESTDIR)$(HOME_OF)" "$(DESTDIR)$(DOC_OF)"
	rm -f "$(DESTDIR)$(PREFIX)/bin/trackd" "$(DESTDIR)$(PREFIX)/bin/trackctl" \
		"$(DESTDIR)$(UNITS)/trackd@.service" "$(DESTDIR)$(UNITS)/trackd@.socket" \
		"$(DESTDIR)$(UNITS)/trackd-lead@.service" \
		"$(DESTDIR)$(SYSUSERS)" "$(DESTDIR)$(TMPFILES)" "$(DESTDIR)$(MAN_OF)/trackctl.1"
	for place in lib/systemd/system lib/systemd lib/sysusers.d lib/tmpfiles.d share/doc \
		share/man/man1 share/man; do \
		rmdir --ignore-fail-on-non-empty "$(DESTDIR)$(PREFIX)/$$place" 2>/dev/null || true; \
	done
	if $(ON_HOST); then \
		systemctl daemon-reload; \
		if getent passwd trackd >/dev/null; then userdel trackd; fi; \
		if getent group trackd >/dev/null; then groupdel trackd; fi; \
	fi

man: $(STAMP) ## build/man/trackctl.1, from the help of the commands
	$(BIN)/python -m trackd_client.cli.man build/man

fleet: $(STAMP) ## simulate agents: time and dials to reach every proxy (ARGS="--proxies 60")
	$(BIN)/python tests/benchmarks/fleet.py $(ARGS)

bench: $(BENCH_STAMP) ## compare with an echo, Redis and the standard library (ARGS="--only kills")
	PYTHONPATH=tests $(BIN)/python -m benchmarks --json build/bench.json $(ARGS)

bench-quick: $(STAMP) ## the most important ratios, in less than a minute
	PYTHONPATH=tests $(BIN)/python -m benchmarks --quick $(ARGS)

bench-coverage: $(STAMP) ## simulate trackd and its peers: time, dials, gaps (ARGS="--only rolling")
	PYTHONPATH=tests $(BIN)/python -m benchmarks.coverage --json build/coverage.json $(ARGS)

bench-ssh: $(STAMP) ## break real ssh tunnels, with trackd and without; 15 minutes (needs sshd, haproxy)
	PYTHONPATH=tests:docs/examples/ssh $(BIN)/python -m benchmarks.tunnels --json build/ssh.json $(ARGS)

plots: $(BENCH_STAMP) ## draw build/performance-*.svg from the figures of `make bench`
	PYTHONPATH=tests $(BIN)/python -m benchmarks.plots build/bench.json build

clean: ## remove what make created
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
