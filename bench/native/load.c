// SPDX-License-Identifier: Apache-2.0
/* The loads of bench/overhead.py and bench/flood.py. Each prints one number: how long its loop took, in nanoseconds
 * (flood: how many calls it made). Starting and ending this program is not in it.
 *
 *   load calls N                  N getppid(): a system call that does next to nothing
 *   load spawn N PROGRAM [ARG..]  N times fork, exec, wait
 *   load files N FOLDER           N times create, write 1 KiB, close, unlink
 *   load flood RATE SECONDS N     N threads that make RATE calls a second together, for so long
 *
 * The clock is read through the vDSO, so timing makes no system calls of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BURST = 100, MAX_THREADS = 64 };

static long long now_ns(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what)
{
        fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
        exit(1);
}

static void calls(long n)
{
        for (long i = 0; i < n; i++)
                syscall(SYS_getppid);
}

static void spawn(long n, char **command)
{
        for (long i = 0; i < n; i++) {
                int status;
                pid_t child = fork();

                if (child < 0)
                        die("fork");
                if (!child) {
                        execv(command[0], command);
                        _exit(127);
                }
                if (waitpid(child, &status, 0) < 0)
                        die("wait");
                if (status) {
                        fprintf(stderr, "load: %s ended with status %d\n", command[0], status);
                        exit(1);
                }
        }
}

static void files(long n, const char *folder)
{
        static const char kilobyte[1024];

        if (chdir(folder))
                die(folder);
        for (long i = 0; i < n; i++) {
                int file = open("file", O_CREAT | O_EXCL | O_WRONLY, 0600);

                if (file < 0 || write(file, kilobyte, sizeof(kilobyte)) != sizeof(kilobyte) || close(file) ||
                    unlink("file"))
                        die("file");
        }
}

struct flood {
        pthread_t thread;
        double rate;
        double seconds;
        long long made;
};

/* In bursts of a hundred, waiting between them by looking at the clock: sleeping would be a system call. */
static void *flood(void *argument)
{
        struct flood *f = argument;
        long long begin = now_ns(), end = begin + (long long)(f->seconds * 1e9), now;

        while ((now = now_ns()) < end) {
                if (f->made > (double)(now - begin) * 1e-9 * f->rate)
                        continue;
                calls(BURST);
                f->made += BURST;
        }
        return 0;
}

static long long floods(double rate, double seconds, int n)
{
        struct flood all[MAX_THREADS] = { 0 };
        long long made = 0;

        if (n < 1 || n > MAX_THREADS) {
                errno = EINVAL;
                die("number of threads");
        }
        for (int i = 0; i < n; i++) {
                all[i].rate = rate / n;
                all[i].seconds = seconds;
                if ((errno = pthread_create(&all[i].thread, 0, flood, &all[i])))
                        die("thread");
        }
        for (int i = 0; i < n; i++) {
                pthread_join(all[i].thread, 0);
                made += all[i].made;
        }
        return made;
}

int main(int argc, char **argv)
{
        const char *what = argc > 2 ? argv[1] : "";
        long n = argc > 2 ? atol(argv[2]) : 0;
        long long begin = now_ns();

        if (!strcmp(what, "calls"))
                calls(n);
        else if (!strcmp(what, "spawn") && argc > 3)
                spawn(n, argv + 3);
        else if (!strcmp(what, "files") && argc > 3)
                files(n, argv[3]);
        else if (!strcmp(what, "flood") && argc > 4) {
                printf("%lld\n", floods(atof(argv[2]), atof(argv[3]), atoi(argv[4])));
                return 0;
        } else {
                fprintf(stderr, "load: see the top of load.c\n");
                return 2;
        }
        printf("%lld\n", now_ns() - begin);
        return 0;
}
