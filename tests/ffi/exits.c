/* Hosts that end without closing, in all ways, with calls under way; argv says how. */
#include "check.h"

static te_executor *executor;
static te_queue *queue;
static te_result *result;
static te_tool_reply *reply;
static shelf s;

static void *ends_it(void *data) {
    (void)data;
    exit(0);
}

int main(int argc, char **argv) {
    pthread_t thread;
    watchdog();
    CHECK(argc == 2);
    shelf_init(&s);
    executor = with_tools(&s, "{}");
    OK(te_queue_new(executor, 10, &queue));
    OK(te_execute(executor, TE_STR("t"), ECHO_CALL, &result));
    OK(te_submit(queue, TE_STR("t"), ECHO_CALL, 1, NULL));
    OK(te_submit(queue, TE_STR("u"), LATER_CALL, 2, NULL));
    OK(te_submit(queue, TE_STR("u"), LATER_CALL, 3, NULL));
    reply = shelf_take(&s, 1);
    puts("exits: ok");
    fflush(stdout);
    switch (argv[1][0]) {
    case 'r': return 0;
    case 'e': exit(0);
    case '_': _exit(0);
    case 'q': /* the thread that has everything is gone first */
        te_queue_free(queue);
        return 0;
    default:
        CHECK(pthread_create(&thread, NULL, ends_it, NULL) == 0);
        pthread_join(thread, NULL);
    }
    return 1;
}
