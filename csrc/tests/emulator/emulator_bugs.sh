#!/bin/bash
# The emulator's tests and its planted bugs in one build: emulator_bugs.sh BUILD_DIR plain|address|thread
# Returns 0 when the tests pass and this build catches each bug that it must catch.
set -u
program=$1/test_emulator
build=$2
case $build in
  plain) sign=. ;;
  address) sign=AddressSanitizer ;;
  thread) sign=ThreadSanitizer ;;
  *) echo "the build is plain, address or thread" >&2; exit 2 ;;
esac
missed=0
"$program" || missed=1
while read -r name builds; do
  [[ " $builds " == *" $build "* ]] || continue
  if said=$("$program" bug "$name" 2>&1) || ! grep -q "$sign" <<< "$said"; then
    echo "MISSED $name"
    missed=1
  else
    echo "caught $name: $(grep -m 1 "$sign" <<< "$said")"
  fi
done < <("$program" list)
exit $missed
