// SPDX-License-Identifier: Apache-2.0
/* Opens a file again and again, and counts how that ends by what was in force all the while.
 *
 *   hammer CONTROL PATH PROCESSES
 *
 * Whoever switches raises the sequence before and after: odd, something is just changing; of an even one the second bit says what is in
 * force. Only what began and ended under the same even sequence says anything. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum end { WENT_ON, REFUSED, OTHERWISE };

struct control {
	volatile uint32_t sequence;
	volatile uint32_t stop;
	volatile uint64_t clear[2][3];  /* by the sequence's second bit, and by how it ended */
	volatile uint64_t all[3];
};

int main(int argc, char **argv)
{
	struct control *control;
	int fd;

	if (argc != 4 || (fd = open(argv[1], O_RDWR)) < 0)
		return 2;
	control = mmap(0, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (control == MAP_FAILED)
		return 2;
	for (int i = 1; i < atoi(argv[3]); i++)
		if (!fork())
			break;
	if (nice(10) < 0) /* whoever switches goes first */
		return 2;
	while (!control->stop) {
		uint32_t before = control->sequence, after;
		enum end end = WENT_ON;

		__sync_synchronize();
		fd = open(argv[2], O_RDONLY);
		if (fd < 0)
			end = errno == EPERM ? REFUSED : OTHERWISE;
		__sync_synchronize();
		after = control->sequence;
		if (fd >= 0)
			close(fd);
		__sync_fetch_and_add(&control->all[end], 1);
		if (before == after && !(before & 1))
			__sync_fetch_and_add(&control->clear[before >> 1 & 1][end], 1);
	}
	while (wait(0) > 0)
		;
	return 0;
}
