/* The library loaded and unloaded in a loop, by a thread that lives on and by threads that end
 * after that: destructors of thread-local variables must be there, and nothing may grow. */
#include <dlfcn.h>

#include "check.h"

/* This program is not linked with the library. */
#define NAMES(X)                                                                                   \
    X(te_version) X(te_last_error) X(te_status_name) X(te_tools_new) X(te_tools_add)               \
    X(te_tools_free) X(te_executor_new) X(te_executor_free) X(te_execute) X(te_result_free)        \
    X(te_tool_reply_ok) X(te_tool_reply_free) X(te_log_set)

static const char *(*p_te_version)(void);
static const char *(*p_te_last_error)(void);
static const char *(*p_te_status_name)(int32_t);
static te_status (*p_te_tools_new)(te_tools **);
static te_status (*p_te_tools_add)(const te_tools *, const char *, size_t, te_tool_fn, void *,
                                   te_free_fn);
static void (*p_te_tools_free)(te_tools *);
static te_status (*p_te_executor_new)(const char *, size_t, const te_tools *, te_executor **);
static void (*p_te_executor_free)(te_executor *);
static te_status (*p_te_execute)(const te_executor *, const char *, size_t, const char *, size_t,
                                 te_result **);
static void (*p_te_result_free)(te_result *);
static te_status (*p_te_tool_reply_ok)(const te_tool_reply *, const char *, size_t);
static void (*p_te_tool_reply_free)(te_tool_reply *);
static te_status (*p_te_log_set)(te_log_fn, void *, int32_t);

/* What check.h calls. */
const char *te_last_error(void) { return p_te_last_error(); }
const char *te_status_name(int32_t status) { return p_te_status_name(status); }
te_status te_tool_reply_ok(const te_tool_reply *r, const char *t, size_t n) {
    return p_te_tool_reply_ok(r, t, n);
}
void te_tool_reply_free(te_tool_reply *r) { p_te_tool_reply_free(r); }

static void nothing(void *user, int32_t level, const char *text, size_t len) {
    (void)user, (void)level, (void)text, (void)len;
}

static void *load(void) {
    void *library = dlopen(getenv("TE_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "%s\n", dlerror());
    if (!library) abort();
#define RESOLVE(name)                                                                              \
    {                                                                                              \
        void *found = dlsym(library, #name);                                                       \
        CHECK(found);                                                                              \
        memcpy(&p_##name, &found, sizeof found);                                                   \
    }
    NAMES(RESOLVE)
    return library;
}

static void use(void) {
    te_tools *tools;
    te_executor *executor;
    te_result *result;
    OK(p_te_log_set(nothing, NULL, TE_LOG_TRACE));
    OK(p_te_tools_new(&tools));
    OK(p_te_tools_add(tools, TE_STR("{\"name\": \"echo\"}"), echo_tool, NULL, NULL));
    OK(p_te_executor_new(TE_STR("{}"), tools, &executor));
    OK(p_te_execute(executor, TE_STR("t"), ECHO_CALL, &result));
    GIVES(TE_NULL, p_te_execute(NULL, TE_STR("t"), ECHO_CALL, NULL));
    p_te_result_free(result);
    p_te_executor_free(executor);
    p_te_tools_free(tools);
    OK(p_te_log_set(NULL, NULL, TE_LOG_OFF));
}

static pthread_barrier_t barrier;

static void *uses_and_lives_on(void *data) {
    (void)data;
    use();
    pthread_barrier_wait(&barrier); /* used */
    pthread_barrier_wait(&barrier); /* unloaded */
    return NULL;
}

int main(void) {
    watchdog();
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    for (int i = 0; i < few(60, 3); i++) {
        void *library = load();
        use();
        CHECK(dlclose(library) == 0);
    }
    for (int i = 0; i < few(20, 2); i++) {
        pthread_t thread;
        void *library = load();
        CHECK(pthread_create(&thread, NULL, uses_and_lives_on, NULL) == 0);
        pthread_barrier_wait(&barrier);
        CHECK(dlclose(library) == 0);
        pthread_barrier_wait(&barrier);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    pthread_barrier_destroy(&barrier);
    puts("loads: ok");
    return 0;
}
