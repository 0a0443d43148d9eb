# SPDX-License-Identifier: Apache-2.0
# The guest's first process, in the host's root: does what the job says, and switches the machine off.

B=/run/vm/busybox
$B ln -s /proc/self/fd /dev/fd
. /run/vm/job
cd "$REPOSITORY" || echo "no $REPOSITORY here"

if [ "$JOB" = shell ]; then
	$B stty rows "$ROWS" cols "$COLUMNS"
	echo "Linux $($B uname -r), $REPOSITORY is read-only, exit switches the machine off"
	$B setsid $B cttyhack /bin/bash -i || :
elif [ "$JOB" = script ]; then
	"$PYTHON" $SCRIPT "$RESULTS" </dev/null || :
elif [ "$JOB" = program ]; then
	$B stty -F "$RESULTS" raw -echo
	("$PYTHON" "$PROGRAM" "$ARGUMENT"; $B printf '\000%s\n' $?) </dev/null >"$RESULTS" 2>&1
else
	# As under a login: a service that isn't Python itself.
	("$PYTHON" tests/vm/inside.py /run/vm/tests "$RESULTS" </dev/null; :)
fi
$B poweroff -f
