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

/* Submits `n` calls, and says what they have cost. */
static void submit(te_queue *queue, const char *call, int n, const char *what) {
    long before = resident();
    char name[32];
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "trajectory-%d", i);
        OK(te_submit(queue, TE_STR(name), TE_STR(call), (uint64_t)i, NULL));
    }
    printf("%d %s: %.2f KiB each, %d threads\n", n, what, (double)(resident() - before) / n / 1024,
           threads());
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

int main(void) {
    const int n = few(10000, 500);
    shelf s;
    te_executor *executor;
    te_queue *queue;
    int fd, before = threads();

    watchdog();
    shelf_init(&s);
    executor = with_tools(&s, "{}");
    OK(te_queue_new(executor, (size_t)n, &queue));
    OK(te_queue_fd(queue, &fd));
    /* Begun, and without an answer. */
    submit(queue, "{\"name\": \"later\", \"arguments\": {\"question\": \"what is it?\"}}", n,
           "calls that a tool has not answered");
    te_tool_reply_free(shelf_take(&s, (size_t)n));
    CHECK(threads() - before < 40);
    while (s.count) {
        te_tool_reply *reply = shelf_take(&s, 1);
        OK(te_tool_reply_ok(reply, TE_STR("it is this")));
        te_tool_reply_free(reply);
    }
    fetch(queue, fd, n);
    /* Waiting: the first blocks all others of its trajectory. */
    char name[] = "one";
    long memory = resident();
    for (int i = 0; i < n; i++)
        OK(te_submit(queue, TE_STR(name), LATER_CALL, (uint64_t)i, NULL));
    te_tool_reply *first = shelf_take(&s, 1);
    printf("%d calls that wait: %.2f KiB each\n", n, (double)(resident() - memory) / n / 1024);
    OK(te_cancel_trajectory(executor, TE_STR(name)));
    fetch(queue, fd, n);
    te_tool_reply_free(first);
    te_queue_free(queue);
    te_executor_free(executor);
    shelf_done(&s);
    puts("many: ok");
    return 0;
}
