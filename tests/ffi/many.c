/* Ten thousand trajectories in flight from one thread: few threads, and so much memory each. */
#include <dirent.h>
#include <poll.h>

#include "check.h"

static int threads(void) {
    DIR *dir = opendir("/proc/self/task");
    int count = 0;
    CHECK(dir);
    while (readdir(dir)) count++;
    closedir(dir);
    return count - 2;
}

static long resident(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    long size, pages;
    CHECK(file && fscanf(file, "%ld %ld", &size, &pages) == 2);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

static void say(long before, int n, const char *what) {
    printf("%d %s: %.2f KiB each, %d threads\n", n, what, (double)(resident() - before) / n / 1024,
           threads());
}

/* When it returns, the library has taken in what was submitted before. */
static void settle(te_executor *executor) {
    te_buffer stats;
    OK(te_stats(executor, &stats));
    te_buffer_free(&stats);
}

static void fetch(te_queue *queue, int fd, int n) {
    te_result *results[256];
    size_t count;
    char *seen = (char *)calloc((size_t)n, 1);
    CHECK(seen);
    for (int got = 0; got < n; got += (int)count) {
        struct pollfd p = {fd, POLLIN, 0};
        CHECK(poll(&p, 1, 100000) == 1);
        OK(te_queue_next_many(queue, 256, 0, results, &count));
        for (size_t i = 0; i < count; i++) {
            CHECK(!seen[results[i]->tag]++);
            te_result_free(results[i]);
        }
    }
    free(seen);
}

#define QUESTION TE_STR("{\"name\": \"later\", \"arguments\": {\"question\": \"what is it?\"}}")

int main(int argc, char **argv) {
    const int n = few(10000, 500), waits = argc > 1 && strcmp(argv[1], "waits") == 0;
    shelf s;
    te_executor *executor;
    te_queue *queue;
    te_tool_reply *reply;
    int fd, threads_before = threads();
    long before;
    char name[32] = "one";

    watchdog();
    shelf_init(&s);
    s.room = (size_t)n;
    s.replies = (te_tool_reply **)calloc(s.room, sizeof *s.replies);
    CHECK(s.replies);
    executor = with_tools(&s, "{}");
    OK(te_queue_new(executor, (size_t)n, &queue));
    OK(te_queue_fd(queue, &fd));
    settle(executor);
    before = resident();
    for (int i = 0; i < n; i++) {
        /* Each a trajectory of its own, or all of one, whose first call holds up the others. */
        if (!waits) snprintf(name, sizeof name, "trajectory-%d", i);
        OK(te_submit(queue, TE_STR(name), QUESTION, (uint64_t)i, NULL));
    }
    reply = shelf_take(&s, waits ? 1 : (size_t)n);
    settle(executor);
    say(before, n, waits ? "calls that wait" : "calls that a tool has not answered");
    CHECK(threads() - threads_before < 40);
    if (waits) {
        OK(te_cancel_trajectory(executor, TE_STR(name)));
    } else {
        OK(te_tool_reply_ok(reply, TE_STR("it is this")));
        for (int i = 1; i < n; i++) {
            te_tool_reply *other = shelf_take(&s, 1);
            OK(te_tool_reply_ok(other, TE_STR("it is this")));
            te_tool_reply_free(other);
        }
    }
    fetch(queue, fd, n);
    te_tool_reply_free(reply);
    te_queue_free(queue);
    te_executor_free(executor);
    shelf_done(&s);
    puts("many: ok");
    return 0;
}
