// SPDX-License-Identifier: Apache-2.0
/* Does what it is told, one system call after the other, and writes down how each ended.
 *
 *   mixed parent CONTROL SLOT EXECUTABLE UID SUID ...   starts actors, by threes of arguments, and waits for them
 *   mixed actor CONTROL SLOT UID SUID                   does the operations of the file CONTROL.SLOT
 *   mixed one PATH FLAGS                                opens one file, and ends with the error
 *
 * What an operation points to stands behind the operations in their file. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENTS 6
#define SLOTS 32
#define KEPT_FD 200          /* descriptors of files opened beforehand: from here on */
#define SIGNALLED 1000       /* added to the signal that has ended a child */

enum how { PLAIN, WITH_SOCKET, IN_CHILD };

enum kind { VALUE, POINTER, OWN_PID, TARGET_PID, SOCKET, KEPT, VECTOR, MESSAGE, ARGV };

struct op {
	uint32_t nr;
	uint8_t how;
	uint8_t domain;
	uint8_t type;
	uint8_t closes;
	uint8_t kinds[8];
	uint64_t args[ARGUMENTS];
	int32_t error;
	int32_t pid;
};

struct plan {
	uint64_t count;
	uint64_t kept;       /* offset of the paths of files to open beforehand, one after the other, an empty one at the end */
	uint64_t ops;
	uint64_t round;      /* begin with the first again, this often */
};

struct control {
	volatile uint32_t ready, go, done, stop;
	volatile uint32_t pids[SLOTS];
};

static uint8_t *data;
static char byte;
static struct iovec vector = {&byte, 1};
static char *no_arguments[] = {"mixed", 0};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *mapped(const char *path, size_t *size)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;
	void *at;

	if (fd < 0 || fstat(fd, &st))
		die(path);
	at = mmap(0, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		die(path);
	close(fd);
	if (size)
		*size = st.st_size;
	return at;
}

static int in_child(struct op *op, const uint64_t *args)
{
	static volatile int failed;
	char flags[24];
	char *argv[] = {(char *)args[0], "one", (char *)args[1], flags, 0}, *envp[] = {0};
	int status = 0;
	pid_t pid;

	snprintf(flags, sizeof(flags), "%lu", (unsigned long)args[2]);
	failed = 0;
	pid = vfork();
	if (!pid) {
		execve(argv[0], argv, envp);
		failed = errno;
		_exit(0);
	}
	op->pid = pid;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		return SIGNALLED + WTERMSIG(status);
	return failed ? failed : WEXITSTATUS(status);
}

static int done(struct op *op, pid_t target)
{
	uint64_t args[ARGUMENTS];
	struct msghdr message = {0};
	int fd = -1, error;
	long result;

	if (op->how == WITH_SOCKET) {
		fd = socket(op->domain, op->type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (fd < 0)
			return SIGNALLED - 1;
	}
	for (int i = 0; i < ARGUMENTS; i++) {
		uint64_t given = op->args[i];

		switch (op->kinds[i]) {
		case POINTER: given = (uint64_t)(data + given); break;
		case OWN_PID: given = getpid(); break;
		case TARGET_PID: given = target; break;
		case SOCKET: given = fd; break;
		case KEPT: given += KEPT_FD; break;
		case ARGV: given = (uint64_t)no_arguments; break;
		case VECTOR: given = (uint64_t)&vector; break;
		case MESSAGE: /* an address, its length above */
			message.msg_name = data + (given & 0xffffffff);
			message.msg_namelen = given >> 32;
			message.msg_iov = &vector;
			message.msg_iovlen = 1;
			given = (uint64_t)&message;
			break;
		}
		args[i] = given;
	}
	if (op->how == IN_CHILD)
		return in_child(op, args);
	result = syscall(op->nr, args[0], args[1], args[2], args[3], args[4], args[5]);
	error = result == -1 ? errno : 0;
	if (!error && op->nr == SYS_mmap)
		munmap((void *)result, args[1]);
	else if (!error && op->closes)
		close(result);
	if (fd >= 0)
		close(fd);
	return error;
}

static int act(struct control *control, const char *control_path, int slot, uid_t uid, uid_t suid)
{
	char path[4096];
	struct plan *plan;
	struct op *ops;
	const char *kept;
	pid_t target;
	int fd = KEPT_FD;

	umask(0);
	snprintf(path, sizeof(path), "%s.%d", control_path, slot);
	data = mapped(path, 0);
	plan = (struct plan *)data;
	ops = (struct op *)(data + plan->ops);
	for (kept = (char *)data + plan->kept; *kept; kept += strlen(kept) + 1, fd++) {
		int opened = strcmp(kept, "memfd") ? open(kept, O_RDWR | O_CREAT, 0666) : (int)syscall(SYS_memfd_create, "x", 0);

		if (opened < 0 || dup2(opened, fd) < 0)
			die(kept);
		close(opened);
		if (strstr(kept, "/deleted"))
			unlink(kept);
	}
	for (int signal = 1; signal < 32; signal++)
		if (signal != SIGCHLD && signal != SIGKILL && signal != SIGSTOP && signal != SIGSEGV && signal != SIGALRM)
			sigaction(signal, &(struct sigaction){.sa_handler = SIG_IGN}, 0);
	target = fork();
	if (!target) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	if (uid && (setresgid(uid, uid, uid) || setresuid(uid, uid, suid)))
		die("setresuid");
	if (prctl(PR_SET_DUMPABLE, 1))
		die("prctl");
	control->pids[slot] = getpid();
	__sync_fetch_and_add(&control->ready, 1);
	while (!control->go)
		usleep(1000);
	for (uint64_t round = 0; round < plan->round && !control->stop; round++)
		for (uint64_t i = 0; i < plan->count; i++)
			ops[i].error = done(&ops[i], target);
	__sync_fetch_and_add(&control->done, 1);
	while (!control->stop)
		usleep(1000);
	return 0; /* and its target with it */
}

int main(int argc, char **argv)
{
	struct control *control;

	if (argc == 4 && !strcmp(argv[1], "one"))
		return syscall(SYS_openat, AT_FDCWD, argv[2], atoi(argv[3]), 0) < 0 ? errno : 0;
	if (argc < 6)
		return 2;
	control = mapped(argv[2], 0);
	if (!strcmp(argv[1], "actor"))
		return act(control, argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
	for (int at = 3; at + 3 < argc; at += 4) {
		char *child[] = {argv[at + 1], "actor", argv[2], argv[at], argv[at + 2], argv[at + 3], 0};

		if (!fork()) {
			execv(child[0], child);
			die(child[0]);
		}
	}
	while (wait(0) > 0 || errno == EINTR)
		;
	return 0;
}
