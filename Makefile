# nomp_crypt: build, install, test.
#
#   make                    the library and the keystore helper
#   make install            into the server that PG_CONFIG names
#   make DEV=1              warnings are errors, assertions are on
#   make WITH_IPSEC_MB=no   with OpenSSL alone
#   make installcheck       pg_regress, on a preloaded server of its own
#   make check-tap          t/*.pl; one alone: PROVE_TESTS=t/name.pl
#   make check-unit         the C test programs
#   make asan               the C test programs under ASan and UBSan
#   make lint, make format
#   make bench              beside plain columns and pgcrypto; bench/README.md
#   make soak               ten minutes of random operations, checked
#
# The checks need what "make install" put into the server of PG_CONFIG, and a
# user other than root.  ./scripts/test does all of it in a private copy.

MODULE_big = nomp_crypt
EXTENSION = nomp_crypt
DATA = $(sort $(wildcard nomp_crypt--*.sql))
PGFILEDESC = "nomp_crypt - columns encrypted with keys in an HSM"

OUR_HEADERS = $(sort $(wildcard include/*.h))
SRC_OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
OBJS = nomp_crypt.o $(SRC_OBJS)

# Intel's library makes AES-GCM faster on processors that it is made for.
# Without it everything works the same, by OpenSSL alone: WITH_IPSEC_MB=no.
WITH_IPSEC_MB ?= $(if $(wildcard /usr/include/intel-ipsec-mb.h),yes,no)
ifeq ($(WITH_IPSEC_MB),yes)
IPSEC_MB_CFLAGS = -DWITH_IPSEC_MB
IPSEC_MB_LIBS = -lIPSec_MB
endif

PKG_CONFIG ?= pkg-config
ICU_LIBS = $(shell $(PKG_CONFIG) --libs icu-uc)

# PostgreSQL 15 does not mark exported symbols itself, 16 does, the same way.
PG_CPPFLAGS = -Iinclude $(IPSEC_MB_CFLAGS) $(LIBPQ_CFLAGS) -DPGDLLEXPORT='__attribute__((visibility("default")))'
PG_CFLAGS = -std=gnu11 -fvisibility=hidden
LIBPQ_CFLAGS = $(shell $(PKG_CONFIG) --cflags libpq)
SHLIB_LINK = -lcrypto $(IPSEC_MB_LIBS) $(ICU_LIBS) $(shell $(PKG_CONFIG) --libs libpq)

ifdef DEV
PG_CPPFLAGS += -DUSE_ASSERT_CHECKING
# Three warnings that PostgreSQL's own headers and idioms set off.
DEV_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers
PG_CFLAGS += $(DEV_CFLAGS)
endif

# The keystore helper: a program of its own, without a line of the server.
KEYSTORE = keystore/nomp_crypt-keystore
KEYSTORE_OBJS = $(patsubst %.c,%.o,$(sort $(wildcard keystore/*.c)))
AWS_OBJS = $(filter keystore/aws_%.o,$(KEYSTORE_OBJS))
KEYSTORE_HEADERS = $(sort $(wildcard keystore/*.h))
P11_CFLAGS = $(shell $(PKG_CONFIG) --cflags p11-kit-1)
P11_LIBS = $(shell $(PKG_CONFIG) --libs p11-kit-1)
AWS_LIBS = $(shell $(PKG_CONFIG) --libs libcurl jansson expat libcrypto)
PLAIN_CFLAGS = -std=gnu11 -g -O2 -Wall -Wmissing-prototypes -Wpointer-arith \
	-Wformat-security -Wvla -Wshadow=local -fno-strict-aliasing \
	-fstack-protector-strong $(if $(SANITIZE),,-D_FORTIFY_SOURCE=2) \
	-D_GNU_SOURCE -Iinclude $(IPSEC_MB_CFLAGS) $(DEV_CFLAGS) $(SANITIZE) $(COPT)
PLAIN_LDFLAGS = -Wl,-z,relro,-z,now $(SANITIZE)

# Test programs.
TEST_PROGRAMS = $(patsubst %.c,%,$(sort $(wildcard test/*_test.c)))
AWS_PROGRAMS = $(filter test/aws_%,$(TEST_PROGRAMS))
CLIENT_PROGRAMS = $(patsubst %.c,%,$(sort $(wildcard test/*_client.c)))
TEST_LIBRARIES = $(patsubst %.c,%.so,$(sort $(wildcard test/*_shim.c)))
TEST_MODULES = $(patsubst %.c,%.so,$(sort $(wildcard test/*_module.c)))	# of the server
PLAIN_OBJS = $(patsubst %,src/%.o,cipher cipher_openssl cipher_ipsec_mb scrub value keyplace personal)	# need no server

# pg_regress on a server of its own; the keystore and the server's settings
# come from scripts/regress-config.
REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
REGRESS_DIR = $(CURDIR)/tmp_regress
REGRESS_OPTS = --temp-instance='$(REGRESS_DIR)/server' \
	--temp-config='$(REGRESS_DIR)/regress.conf' \
	--encoding=UTF8 --no-locale --load-extension=nomp_crypt
REGRESS_PREP = regress-config

EXTRA_CLEAN = $(KEYSTORE) $(KEYSTORE_OBJS) $(TEST_PROGRAMS) $(CLIENT_PROGRAMS) $(TEST_LIBRARIES) \
	$(TEST_MODULES) tmp_check tmp_regress

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(OUR_HEADERS)

all: $(KEYSTORE)

$(KEYSTORE_OBJS): keystore/%.o: keystore/%.c $(OUR_HEADERS) $(KEYSTORE_HEADERS)
	$(CC) $(PLAIN_CFLAGS) -fPIE $(P11_CFLAGS) -c -o $@ $<

$(KEYSTORE): $(KEYSTORE_OBJS)
	$(CC) $(PLAIN_CFLAGS) -pie $(PLAIN_LDFLAGS) -o $@ $^ $(P11_LIBS) $(AWS_LIBS) -ldl -lm -lpthread

.PHONY: install-keystore uninstall-keystore
install: install-keystore
uninstall: uninstall-keystore

install-keystore: all installdirs
	$(INSTALL_PROGRAM) $(KEYSTORE) '$(DESTDIR)$(pkglibdir)/'

uninstall-keystore:
	rm -f '$(DESTDIR)$(pkglibdir)/$(notdir $(KEYSTORE))'

# Tests.
.PHONY: test-programs check-unit check-tap regress-config asan format lint bench soak
test-programs: $(TEST_PROGRAMS) $(CLIENT_PROGRAMS) $(TEST_LIBRARIES) $(TEST_MODULES) $(KEYSTORE)

$(TEST_PROGRAMS): test/%: test/%.c $(PLAIN_OBJS) $(OUR_HEADERS) $(wildcard test/*.h)
	$(CC) $(PLAIN_CFLAGS) $(P11_CFLAGS) $(SANITIZE) -o $@ $< $(PLAIN_OBJS) $(TEST_OBJS) \
		-lcrypto $(IPSEC_MB_LIBS) $(TEST_LIBS) -lpthread

# Of the helper's objects, those of the AWS client.
$(AWS_PROGRAMS): $(AWS_OBJS) $(KEYSTORE_HEADERS)
$(AWS_PROGRAMS): TEST_OBJS = $(AWS_OBJS)
$(AWS_PROGRAMS): TEST_LIBS = $(AWS_LIBS)

# libpq's own place: PGXS's libpq flags are for the server's tree.
$(CLIENT_PROGRAMS): test/%: test/%.c
	$(CC) $(PLAIN_CFLAGS) $(shell $(PKG_CONFIG) --cflags libpq) -o $@ $< \
		$(shell $(PKG_CONFIG) --libs libpq)

$(TEST_LIBRARIES): test/%.so: test/%.c $(wildcard test/*.h)
	$(CC) $(PLAIN_CFLAGS) $(P11_CFLAGS) -fPIC -shared -o $@ $< -ldl -lpthread

$(TEST_MODULES): test/%.so: test/%.c
	$(CC) $(CFLAGS) $(CPPFLAGS) -fPIC -shared -o $@ $<

check-unit: test-programs
	@for t in $(TEST_PROGRAMS); do echo "# $$t"; ./$$t || exit 1; done

# Objects built without and with sanitizers do not mix: clean before and after.
asan:
	$(MAKE) clean
	$(MAKE) check-unit COPT="$(ASAN_FLAGS)" SANITIZE="$(ASAN_FLAGS)"
	$(MAKE) clean

ASAN_FLAGS = -fsanitize=address,undefined -fno-sanitize-recover=undefined \
	-fno-omit-frame-pointer -O1

installcheck: export SOFTHSM2_CONF = $(REGRESS_DIR)/softhsm2.conf
installcheck: export AWS_SHARED_CREDENTIALS_FILE = $(REGRESS_DIR)/aws/credentials
installcheck: export AWS_CONFIG_FILE = $(REGRESS_DIR)/aws/config
regress-config:
	./scripts/regress-config '$(REGRESS_DIR)' $$PPID

check-tap: $(TEST_LIBRARIES) $(TEST_MODULES) $(CLIENT_PROGRAMS)
	$(prove_installcheck)

format:
	./scripts/format

bench:
	./scripts/bench $(BENCH_OPTS)

soak:
	./scripts/soak $(SOAK_OPTS)

lint: all
	./scripts/lint
