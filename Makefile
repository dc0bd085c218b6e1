# `make` builds, `make help` lists the rest.

PREFIX = /usr/local
SYSCONFDIR = /etc
DESTDIR =
CARGO = cargo

SBINDIR = $(PREFIX)/sbin
BINDIR = $(PREFIX)/bin
SHAREDIR = $(PREFIX)/share
MANDIR = $(SHAREDIR)/man
UNITDIR = $(PREFIX)/lib/systemd/system
CONFDIR = $(SYSCONFDIR)/kurultai
INITDIR = $(SYSCONFDIR)/init.d

TARGET = $(or $(CARGO_TARGET_DIR),target)
FUZZ = $(abspath $(TARGET))/fuzz
INSTALL = install
PAGES = $(wildcard man/*.[1-8])
AGENTS = $(filter-out %/__pycache__,$(wildcard scripts/agents/*))
SCRIPTS = .ci/run $(shell awk 'FNR == 1 && /^\#!.*[/ ](ba)?sh( |$$)/ { print FILENAME }' \
	$$(find scripts tests conf -type f ! -name '*.pyc')) scripts/agents/kurultai.sh

SEED =
COUNT =
SECONDS =
ROUNDS =

.PHONY: build help demo run test simulate crashes faults check coverage fuzz bench footprint install uninstall clean

build: ## optimised programs in target/release (the default)
	$(CARGO) build --release --locked

help: ## this list
	@awk -F ':[^#]*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## real work through a throw-away daemon: requests, answers, memory, and a clean stop
	scripts/setup --check demo
	scripts/demo

run: build ## the daemon in the foreground on conf/dev.toml, state in ./run; stop it with Ctrl-C
	mkdir -p run
	KURULTAI_DAEMON_STATE_DIR="$(CURDIR)/run/state" KURULTAI_DAEMON_RUNTIME_DIR="$(CURDIR)/run" \
		PATH="$(CURDIR)/scripts/agents:$$PATH" $(TARGET)/release/kurultaid --config conf/dev.toml

test: ## all tests
	scripts/setup --check test
	$(CARGO) test --locked
	KURULTAI_EXAMPLE_AGENT="$(abspath $(TARGET))/debug/examples/agent" python3 tests/agents/test_agents.py
	KURULTAID="$(abspath $(TARGET))/debug/kurultaid" python3 tests/browser/test_page.py
	shellcheck $(SCRIPTS)

# Why these names: SEED is the first seed to walk, COUNT how many from it on; SECONDS goes on with new ones.
simulate: ## random walks through the core, for a minute; SEED=n walks one again, also COUNT=n SECONDS=n
	KURULTAI_SEED=$(SEED) KURULTAI_COUNT=$(COUNT) KURULTAI_SECONDS=$(or $(SECONDS),$(if $(SEED)$(COUNT),,60)) \
		$(CARGO) test --locked --profile simulation --lib core::tests::walk -- --nocapture

check: ## formatting and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

ROUNDS = 200
SEED =
crashes: ## kill -9 under load, ROUNDS (200) times from SEED (a new one)
	KURULTAI_ROUNDS=$(ROUNDS) KURULTAI_SEED=$(SEED) $(CARGO) test --locked --test crashes -- --nocapture

faults: ## a crash and an error at every step on the disk
	KURULTAI_POINTS=all $(CARGO) test --locked --test faults -- --nocapture

# Why llvm: the other engine loses sight of threads once a test has started processes.
coverage: ## lines of the core, the workers and the memory room under test, at least 90 %
	@$(CARGO) tarpaulin --version || { \
		echo "cargo-tarpaulin is missing: cargo install --locked cargo-tarpaulin" >&2; exit 1; }
	$(CARGO) build --locked --examples --target-dir $(TARGET)/coverage
	$(CARGO) tarpaulin --locked --engine llvm --packages kurultai --lib --skip-clean --target-dir $(TARGET)/coverage \
		--include-files 'src/core/*' --include-files 'src/worker/*' --include-files 'src/memory/*' \
		--exclude-files '*tests*' --out Xml --output-dir coverage --fail-under 90

# Why RUSTC_BOOTSTRAP: the sanitizers are options of the compiler that it calls unstable, whatever it is asked to build.
fuzz: ## the HTTP head and the worker protocol against any bytes, SECONDS=60 each
	@$(CARGO) fuzz --version || { \
		echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz (and a C++ compiler, Debian package g++)" >&2; exit 1; }
	for target in head protocol; do \
		mkdir -p $(FUZZ)/corpus/$$target $(FUZZ)/tmp && \
		TMPDIR=$(FUZZ)/tmp RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir tests/fuzz --target-dir $(FUZZ) $$target \
			$(FUZZ)/corpus/$$target $(CURDIR)/tests/fuzz/corpus/$$target -- -max_total_time=$(or $(SECONDS),60) -max_len=9000 \
			|| exit 1; \
	done

bench: build ## latency and throughput; SECONDS=30 for each server under wrk
	scripts/bench $(SECONDS)

footprint: build ## memory of the daemon, idle and under load
	scripts/footprint

install: ## into DESTDIR, PREFIX (/usr/local) and SYSCONFDIR (/etc); run make before
	@test -x $(TARGET)/release/kurultaid || { echo "nothing is built: run make first" >&2; exit 1; }
	$(INSTALL) -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(BINDIR) $(DESTDIR)$(CONFDIR) $(DESTDIR)$(INITDIR) \
		$(DESTDIR)$(UNITDIR) $(DESTDIR)$(SHAREDIR)/kurultai/agents $(DESTDIR)$(SHAREDIR)/kurultai/profiles \
		$(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man7 $(DESTDIR)$(MANDIR)/man8 \
		$(DESTDIR)$(SHAREDIR)/bash-completion/completions $(DESTDIR)$(SHAREDIR)/zsh/site-functions \
		$(DESTDIR)$(SHAREDIR)/fish/vendor_completions.d
	$(INSTALL) $(TARGET)/release/kurultaid $(DESTDIR)$(SBINDIR)/kurultaid
	$(INSTALL) $(TARGET)/release/kurultaictl $(DESTDIR)$(BINDIR)/kurultaictl
	for page in $(PAGES); do \
		name=$${page#man/}; out=$(DESTDIR)$(MANDIR)/man$${name##*.}/$$name; \
		sed 's,/usr/local/share,$(SHAREDIR),g' $$page > $$out && chmod 644 $$out || exit 1; \
	done
	$(INSTALL) -m 644 scripts/completions/kurultaictl.bash \
		$(DESTDIR)$(SHAREDIR)/bash-completion/completions/kurultaictl
	$(INSTALL) -m 644 scripts/completions/_kurultaictl $(DESTDIR)$(SHAREDIR)/zsh/site-functions/_kurultaictl
	$(INSTALL) -m 644 scripts/completions/kurultaictl.fish \
		$(DESTDIR)$(SHAREDIR)/fish/vendor_completions.d/kurultaictl.fish
	for agent in $(AGENTS); do \
		mode=644; if test -x $$agent; then mode=755; fi; \
		$(INSTALL) -m $$mode $$agent $(DESTDIR)$(SHAREDIR)/kurultai/agents/ || exit 1; \
	done
	$(INSTALL) -m 644 conf/kurultai.toml $(DESTDIR)$(SHAREDIR)/kurultai/kurultai.toml
	$(INSTALL) -m 644 conf/profiles/*.toml $(DESTDIR)$(SHAREDIR)/kurultai/profiles/
	test -e $(DESTDIR)$(CONFDIR)/kurultai.toml || \
		$(INSTALL) -m 644 conf/kurultai.toml $(DESTDIR)$(CONFDIR)/kurultai.toml
	sed 's,^DAEMON=/usr/local/sbin,DAEMON=$(SBINDIR),' scripts/init/kurultaid > $(DESTDIR)$(INITDIR)/kurultaid
	chmod 755 $(DESTDIR)$(INITDIR)/kurultaid
	sed 's,/usr/local/sbin,$(SBINDIR),g' scripts/systemd/kurultaid.service > $(DESTDIR)$(UNITDIR)/kurultaid.service
	chmod 644 $(DESTDIR)$(UNITDIR)/kurultaid.service
	$(INSTALL) -m 644 scripts/systemd/kurultaid.socket $(DESTDIR)$(UNITDIR)/kurultaid.socket

uninstall: ## what install put there, but for the configuration and the state
	rm -f $(DESTDIR)$(SBINDIR)/kurultaid $(DESTDIR)$(BINDIR)/kurultaictl $(DESTDIR)$(INITDIR)/kurultaid \
		$(DESTDIR)$(UNITDIR)/kurultaid.service $(DESTDIR)$(UNITDIR)/kurultaid.socket \
		$(DESTDIR)$(SHAREDIR)/bash-completion/completions/kurultaictl \
		$(DESTDIR)$(SHAREDIR)/zsh/site-functions/_kurultaictl \
		$(DESTDIR)$(SHAREDIR)/fish/vendor_completions.d/kurultaictl.fish
	for page in $(PAGES); do \
		name=$${page#man/}; rm -f $(DESTDIR)$(MANDIR)/man$${name##*.}/$$name; \
	done
	rm -rf $(DESTDIR)$(SHAREDIR)/kurultai

clean: ## everything that was built, and the state of make run
	$(CARGO) clean
	rm -rf run coverage
