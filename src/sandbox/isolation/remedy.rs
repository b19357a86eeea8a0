//! What a user can do where there is no sandbox: the advice that fits what refused it.
//!
//! [`Facts`] are read from this machine; [`advice`] is a pure function of them.

use rustix::thread::CapabilitySet;

use super::Failure;
use crate::sandbox::limits;

/// The release that can change the attributes of a whole tree of mounts.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

/// What is known of this machine that tells why it refuses user namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The kernel is older than what sandboxes need.
    kernel_is_old: bool,
    /// `kernel.unprivileged_userns_clone` of Debian's kernels is 0.
    debian_switch_is_off: bool,
    /// `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu's kernels is 1.
    apparmor_restricts: bool,
    /// `vm.memfd_noexec` is 2: no program can be executed from memory.
    forbids_programs_in_memory: bool,
    /// `user.max_user_namespaces`, or that of another kind, is 0.
    no_user_namespaces: bool,
    /// The root directory is not that of a mount: a chroot, in which the kernel makes no
    /// namespaces.
    in_chroot: bool,
    /// The container that this is.
    container: Option<Engine>,
    /// This process is root without what it takes to be another user.
    is_weak_root: bool,
}

/// What made a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Docker,
    Podman,
    Kubernetes,
    /// Apptainer, or Singularity before it.
    Apptainer,
}

impl Engine {
    /// By the variables and files that they leave in it. `None` also for those that leave nothing,
    /// as enroot.
    fn detect(
        has_variable: impl Fn(&str) -> bool,
        has_file: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        // Kubernetes has others make its containers, which leave their files.
        if has_variable("KUBERNETES_SERVICE_HOST") {
            Some(Self::Kubernetes)
        } else if has_file("/run/.containerenv") {
            Some(Self::Podman)
        } else if has_file("/.dockerenv") {
            Some(Self::Docker)
        } else if has_variable("APPTAINER_CONTAINER") || has_variable("SINGULARITY_CONTAINER") {
            Some(Self::Apptainer)
        } else {
            None
        }
    }
}

impl Facts {
    /// Looks at this machine. Blocks on a few file system calls.
    pub(crate) fn read() -> Self {
        let number = |path: &str| {
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
        };
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let may_change_users = || {
            rustix::thread::capabilities(None).is_ok_and(|sets| {
                sets.effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID)
            })
        };
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self {
            kernel_is_old: limits::kernel_version(&release) < OLDEST_KERNEL,
            debian_switch_is_off: number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                == Some(1),
            forbids_programs_in_memory: number("/proc/sys/vm/memfd_noexec") == Some(2),
            no_user_namespaces: are_namespaces_forbidden(),
            in_chroot: !has_root_mount(&text("/proc/self/mountinfo")),
            container: Engine::detect(
                |variable| std::env::var_os(variable).is_some(),
                |path| std::fs::exists(path).unwrap_or(false),
            ),
            is_weak_root: rustix::process::geteuid().is_root() && !may_change_users(),
        }
    }
}

/// Whether this machine's limit of some kind of namespace that a sandbox has is 0. Blocks on a few
/// file system calls.
pub(super) fn are_namespaces_forbidden() -> bool {
    ["user", "pid", "mnt", "ipc", "uts", "net", "cgroup"].iter().any(|kind| {
        let path = format!("/proc/sys/user/max_{kind}_namespaces");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
    })
}

/// Whether the root directory is that of a mount. Where that cannot be read it is taken to be one.
fn has_root_mount(mountinfo: &str) -> bool {
    let mut lines = mountinfo.lines().peekable();
    lines.peek().is_none() || lines.any(|line| line.split(' ').nth(4) == Some("/"))
}

/// What to do about a failure, as a clause; where there is no sandbox for a reason that lasts.
pub(crate) fn advice(failure: &Failure, facts: &Facts) -> &'static str {
    match failure {
        Failure::Missing => {
            "build it for x86-64 or 64-bit Arm, with a linker that makes static programs"
        }
        Failure::Refused(_) if facts.kernel_is_old => "use Linux 5.12 or later",
        Failure::Refused(_) if facts.forbids_programs_in_memory => {
            "allow programs in memory: sysctl vm.memfd_noexec=1"
        }
        Failure::Refused(_) if facts.is_weak_root => {
            "run this program as an ordinary user, or as root with all capabilities"
        }
        Failure::Refused(_) if facts.in_chroot => {
            "the kernel makes no user namespaces in a chroot: use pivot_root or a container instead"
        }
        Failure::Refused(_) if facts.debian_switch_is_off => {
            "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1"
        }
        Failure::Refused(_) if facts.no_user_namespaces => {
            "allow user namespaces: sysctl user.max_user_namespaces=15000"
        }
        Failure::Refused(_) if facts.apparmor_restricts => {
            "allow user namespaces to this program by an AppArmor profile with `userns`, or to all \
             programs: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        }
        Failure::Refused(_) if facts.container.is_some() => match facts.container {
            Some(Engine::Kubernetes) => {
                "let the container make namespaces: securityContext.seccompProfile of type Localhost \
                 with packaging/seccomp.json, and hostUsers: false with procMount: Unmasked \
                 (docs/containers.md)"
            }
            Some(Engine::Podman) => {
                "let the container make namespaces: --security-opt seccomp=packaging/seccomp.json, or \
                 unconfined; its host may forbid user namespaces, too (docs/containers.md)"
            }
            Some(Engine::Apptainer) => {
                "let the container make namespaces: its host must allow user namespaces (sysctl \
                 user.max_user_namespaces), and no --security option may filter them \
                 (docs/containers.md)"
            }
            Some(Engine::Docker) | None => {
                "let the container make namespaces: --security-opt seccomp=packaging/seccomp.json, or \
                 unconfined, and --security-opt systempaths=unconfined (docs/containers.md)"
            }
        },
        Failure::Refused(_) => {
            "allow user namespaces to this user (sysctl user.max_user_namespaces, the seccomp filter \
             and the security module decide)"
        }
        Failure::Broken(_) => "see what is missing, or use Linux 5.12 or later",
        Failure::Shortage(_) => "free memory, processes or descriptors and start again",
        Failure::TimedOut(_) => "find out what stops it, and start again",
        Failure::Interrupted => "start again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_fits_the_refusal() {
        let refused = Failure::Refused("no".to_owned());
        let none = Facts::default();
        let in_ = |engine, facts| Facts { container: Some(engine), ..facts };
        assert!(advice(&Failure::Missing, &none).contains("static programs"));
        assert!(advice(&Failure::Broken(String::new()), &none).contains("Linux 5.12"));
        assert!(advice(&refused, &none).contains("max_user_namespaces"));
        let cases = [
            (in_(Engine::Docker, Facts { kernel_is_old: true, ..none.clone() }), "Linux 5.12"),
            (Facts { forbids_programs_in_memory: true, ..none.clone() }, "vm.memfd_noexec=1"),
            (Facts { debian_switch_is_off: true, ..none.clone() }, "unprivileged_userns_clone=1"),
            (Facts { apparmor_restricts: true, ..none.clone() }, "AppArmor profile"),
            (Facts { no_user_namespaces: true, ..none.clone() }, "user.max_user_namespaces="),
            (Facts { in_chroot: true, ..none.clone() }, "chroot"),
            (in_(Engine::Docker, none.clone()), "systempaths=unconfined"),
            (in_(Engine::Podman, none.clone()), "seccomp=packaging/seccomp.json"),
            (in_(Engine::Kubernetes, none.clone()), "hostUsers: false"),
            (in_(Engine::Apptainer, none.clone()), "user.max_user_namespaces"),
            (in_(Engine::Podman, Facts { is_weak_root: true, ..none.clone() }), "ordinary user"),
        ];
        for (facts, words) in cases {
            assert!(advice(&refused, &facts).contains(words), "{facts:?}");
            // It says nothing of what was not refused.
            assert_eq!(advice(&Failure::Missing, &facts), advice(&Failure::Missing, &none));
        }
    }

    #[test]
    fn container_engines_are_known_by_what_they_leave() {
        let detect = |variables: &[&str], files: &[&str]| {
            Engine::detect(|name| variables.contains(&name), |path| files.contains(&path))
        };
        assert_eq!(detect(&[], &[]), None);
        assert_eq!(detect(&[], &["/.dockerenv"]), Some(Engine::Docker));
        assert_eq!(detect(&[], &["/run/.containerenv"]), Some(Engine::Podman));
        let in_pod = detect(&["KUBERNETES_SERVICE_HOST"], &["/.dockerenv"]);
        assert_eq!(in_pod, Some(Engine::Kubernetes));
        assert_eq!(detect(&["SINGULARITY_CONTAINER"], &[]), Some(Engine::Apptainer));
    }

    #[test]
    fn a_chroot_is_known_by_its_mounts() {
        let whole = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:5 / /proc rw - proc proc rw\n";
        assert!(has_root_mount(whole));
        assert!(!has_root_mount("22 21 0:5 / /proc rw - proc proc rw\n"));
        assert!(has_root_mount(""), "nothing is known");
        assert!(!Facts::read().in_chroot, "the tests do not run in one");
    }
}
