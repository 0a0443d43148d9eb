#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The guest's first process, in its first root: makes the host's root ours, read-only, with places that can be written laid over
# it, and goes there. Variables come from /job/job, which machine.py writes.

B=/bin/busybox
die() {
	echo "init: $*"
	$B poweroff -f
}

$B mount -t proc proc /proc && $B mount -t sysfs sysfs /sys && $B mount -t devtmpfs dev /dev || die "no /proc, /sys or /dev"
. /job/job
for module in /mods/*.ko; do
	[ ! -f "$module" ] || $B insmod "$module" || die "insmod $module failed"
done
$B mount -t virtiofs -o ro root /host || die "the host's root can't be mounted"

# What the tests themselves are made of may lie below a place that is covered: it is put back on top.
$B mount -o bind /host /keep || die "no second view of the host's root"
for place in /run /tmp /var/lib /var/cache /root; do
	[ ! -d "/host$place" ] || $B mount -t tmpfs -o mode=$([ $place = /tmp ] && echo 1777 || echo 755) tmpfs "/host$place" ||
		die "no tmpfs on $place"
done
while read -r kept; do
	[ -n "$kept" ] || continue
	$B mkdir -p "/host$kept" && $B mount -o bind "/keep$kept" "/host$kept" || die "$kept can't be kept"
done <<END
$KEPT
END
$B umount -l /keep

$B mount -t proc proc /host/proc
$B mount -t sysfs sysfs /host/sys
$B mount -t devtmpfs dev /host/dev
$B mkdir -p /host/dev/pts /host/dev/shm
$B mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /host/dev/pts
$B mount -t tmpfs -o mode=1777 tmpfs /host/dev/shm
$B mount -t securityfs securityfs /host/sys/kernel/security || die "no securityfs"
$B mount -t tracefs tracefs /host/sys/kernel/tracing || die "no tracefs"
$B mount -t bpf bpf /host/sys/fs/bpf || die "no bpffs"
$B mount -t cgroup2 cgroup2 /host/sys/fs/cgroup || die "no cgroup2"
$B ifconfig lo 127.0.0.1 up || die "no loopback"
$B hostname "$HOSTNAME"

$B cp -r /job /host/run/vm && $B cp /bin/busybox /host/run/vm/ || die "nothing can be written below /run"
$B umount -l /proc /sys /dev
exec $B switch_root /host /run/vm/busybox sh /run/vm/after
