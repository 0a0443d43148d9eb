// SPDX-License-Identifier: Apache-2.0
/* Waits for something to take effect, as bench/verdict_latency.py tells it, and writes down when it saw that.
 *
 *   waiter CONTROL PATH MAP_FD
 *
 * Rounds are numbered. In an odd one it opens PATH for writing until that is refused, and says how long after; then until it isn't any more. In
 * an even one it looks into a map of the kernel's until the round's number stands there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct control {
        volatile uint32_t round;    /* 0: not yet begun */
        volatile uint32_t watching; /* the round it waits in */
        volatile uint32_t seen;     /* the round whose effect it has seen */
        volatile uint32_t free;     /* ... and seen end */
        volatile uint64_t when_ns;  /* CLOCK_MONOTONIC */
        volatile uint32_t stop;
};

static uint64_t now_ns(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static int refused(const char *path)
{
        int fd = open(path, O_WRONLY);

        if (fd >= 0)
                close(fd);
        return fd < 0 && errno == EPERM;
}

static int stands_there(int map, uint32_t round)
{
        union bpf_attr attr = {};
        uint64_t key[2] = {0}, value = 0;

        attr.map_fd = map;
        attr.key = (uint64_t)key;
        attr.value = (uint64_t)&value;
        return !syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr)) && value == round;
}

int main(int argc, char **argv)
{
        struct control *c;
        uint32_t round = 0;
        int fd;

        if (argc != 4 || (fd = open(argv[1], O_RDWR)) < 0)
                return 2;
        c = mmap(0, sizeof(*c), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (c == MAP_FAILED)
                return 2;
        while (!c->stop) {
                int takes_hold;

                if (c->round == round) {
                        usleep(200);
                        continue;
                }
                round = c->round;
                takes_hold = round & 1;
                c->watching = round;
                while (!c->stop && !(takes_hold ? refused(argv[2]) : stands_there(atoi(argv[3]), round)))
                        ;
                c->when_ns = now_ns();
                __sync_synchronize();
                c->seen = round;
                while (!c->stop && takes_hold && refused(argv[2]))
                        usleep(200);
                c->free = round;
        }
        return 0;
}
