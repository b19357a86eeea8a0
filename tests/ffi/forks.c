/* A host that forks at every point: the child is told so at once, may free everything, and hangs
 * nowhere; the parent does not notice. */
#include <sys/wait.h>

#include "check.h"

static te_executor *executor;
static te_queue *queue;
static te_call *call;
static te_tools *tools;
static te_tool_reply *reply;
static te_result *result;

/* The child's end, with what exit() does or without; unwatched, for to those who look for leaks
 * what belongs to threads that are not here is one. */
static void over(int all) {
    if (getenv("TE_TEST_FEW")) execl("/bin/true", "true", (char *)NULL);
#ifdef __SANITIZE_ADDRESS__
    all = 0;
#endif
    if (all) exit(0);
    _exit(0);
}

/* What a child may do, all of it. */
static void child(void) {
    te_executor *another;
    te_result *none;
    te_buffer buffer;
    size_t n;
    int fd;
    alarm(60);
    GIVES(TE_FORKED, te_executor_new(TE_STR("{}"), NULL, &another));
    CHECK(another == NULL && strstr(te_last_error(), "fork"));
    if (executor) {
        GIVES(TE_FORKED, te_execute(executor, TE_STR("t"), ECHO_CALL, &none));
        GIVES(TE_FORKED, te_stats(executor, &buffer));
        GIVES(TE_FORKED, te_describe(executor, &buffer));
        GIVES(TE_FORKED, te_release(executor, TE_STR("t"), 1));
        GIVES(TE_FORKED, te_submit_release(executor, TE_STR("t"), 1));
        GIVES(TE_FORKED, te_cancel_trajectory(executor, TE_STR("t")));
        GIVES(TE_FORKED, te_executor_close(executor, 10, NULL, NULL));
        GIVES(TE_FORKED, te_artifact_list(executor, TE_STR("t"), NULL, 0, &buffer));
        GIVES(TE_FORKED, te_queue_new(executor, 1, &queue));
    }
    GIVES(TE_FORKED, te_log_set(NULL, NULL, 0));
    if (reply) {
        GIVES(TE_FORKED, te_tool_reply_ok(reply, TE_STR("x")));
        te_tool_reply_free(reply);
    }
    if (call) {
        GIVES(TE_FORKED, te_call_cancel(call));
        te_call_free(call);
    }
    (void)n;
    (void)fd;
    te_tools_free(tools);
    te_executor_free(executor);
    if (result) {
        CHECK(is_text(result->output, result->output_len, "{\"x\":1}"));
        te_result_free(result);
    }
    OK(te_parse_calls(TE_STR("x"), &buffer));
    te_buffer_free(&buffer);
    over(0);
}

static void child_of_queue(void) {
    te_result *none;
    size_t n;
    int fd;
    alarm(60);
    GIVES(TE_FORKED, te_submit(queue, TE_STR("t"), ECHO_CALL, 1, NULL));
    GIVES(TE_FORKED, te_queue_next(queue, 100, &none));
    GIVES(TE_FORKED, te_queue_next_many(queue, 1, 100, &none, &n));
    GIVES(TE_FORKED, te_queue_outstanding(queue, &n));
    GIVES(TE_FORKED, te_queue_fd(queue, &fd));
    te_queue_free(queue);
    te_executor_free(executor);
    over(1);
}

static void forked(void (*body)(void)) {
    int status;
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) body();
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void fresh(void) {
    shelf s;
    te_result *got;
    alarm(60);
    shelf_init(&s);
    executor = with_tools(&s, "{}");
    OK(te_execute(executor, TE_STR("t"), ECHO_CALL, &got));
    te_result_free(got);
    te_executor_free(executor);
    executor = NULL;
    shelf_done(&s);
    _exit(0);
}

static volatile int stop;

/* Keeps all locks busy while others fork. */
static void *works(void *data) {
    te_result *got;
    (void)data;
    while (!stop) {
        te_status status = te_submit(queue, TE_STR("busy"), ECHO_CALL, 0, NULL);
        CHECK(status == TE_OK || status == TE_COMPLETIONS_FULL);
        if (te_queue_next(queue, 0, &got) == TE_OK) te_result_free(got);
    }
    return NULL;
}

int main(void) {
    shelf s;
    te_queue *kept;
    pthread_t threads[2];

    watchdog();
    forked(fresh); /* before the first executor, all is well in the child */
    shelf_init(&s);
    executor = with_tools(&s, "{}");
    OK(te_tools_new(&tools));
    forked(child);
    OK(te_queue_new(executor, 64, &queue));
    kept = queue;
    forked(child);
    forked(child_of_queue);
    OK(te_execute(executor, TE_STR("t"), ECHO_CALL, &result));
    OK(te_submit(queue, TE_STR("u"), LATER_CALL, 1, &call));
    reply = shelf_take(&s, 1);
    forked(child); /* with a call under way, in the tool's hand */
    forked(child_of_queue);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, works, NULL) == 0);
#ifdef __SANITIZE_ADDRESS__
    /* The sanitizer's allocator may be locked for ever in the child of a busy process. */
#else
    for (int i = 0; i < few(200, 10); i++) forked(i % 2 ? child : child_of_queue);
#endif
    stop = 1;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(queue == kept);
    OK(te_tool_reply_ok(reply, TE_STR("done")));
    te_tool_reply_free(reply), te_call_free(call), te_result_free(result), te_tools_free(tools);
    reply = NULL, call = NULL, result = NULL, tools = NULL;
    OK(te_executor_close(executor, 10, NULL, NULL));
    forked(child_of_queue); /* after the close */
    te_executor_free(executor);
    te_queue_free(queue);
    executor = NULL;
    forked(child); /* after the end */
    CHECK(s.freed == 1);
    shelf_done(&s);
    puts("forks: ok");
    return 0;
}
