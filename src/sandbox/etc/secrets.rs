//! What of the host's settings is secret: by its name, or by what is in it. Pure.
//!
//! Most secrets need no rule: others may not read them on the host, and they are not copied. This
//! is for what is kept less well, and for what tells of the host or of its network.

use std::path::Path;

/// Names beneath `/etc` that are not shown, whoever may read them. A `*` at the end stands for any
/// end of the last name; a directory is shown empty.
const NAMES: &[&str] = &[
    // Users and what they may do.
    "shadow*",
    "gshadow*",
    "passwd-",
    "group-",
    "subuid*",
    "subgid*",
    "security/opasswd",
    "sudoers*",
    "sudo.conf",
    "doas.conf",
    "polkit-1",
    // Keys.
    "ssh/ssh_host_*",
    "ssh/sshd_config*",
    "ssl/private",
    "pki/private",
    "pki/tls/private",
    "pki/nssdb",
    "letsencrypt",
    "krb5.keytab*",
    "ipsec*",
    "strongswan*",
    "swanctl",
    "wireguard",
    "openvpn",
    "tinc",
    // The machine, its disks and its network.
    "machine-id",
    "hostid",
    "fstab*",
    "crypttab*",
    "exports*",
    "iscsi",
    "multipath*",
    "netplan",
    "network",
    "NetworkManager",
    "systemd",
    "wpa_supplicant",
    "ppp",
    "cloud",
    "waagent.conf",
    "udev",
    "default",
    "environment",
    "environment.d",
    "ld.so.preload",
    // Jobs, whose lines may have passwords.
    "cron*",
    "anacrontab",
    // Containers and clusters.
    "docker",
    "containerd",
    "containers",
    "crio",
    "cni",
    "kubernetes",
    "rancher",
    "k0s",
    "nomad*",
    "consul*",
    "vault*",
    "slurm*",
    "munge",
    // Accounts of services, of the cloud and of this program.
    "apt/auth.conf*",
    "aws",
    "azure",
    "boto.cfg",
    "gcloud",
    "google*",
    "ansible",
    "puppet*",
    "salt",
    "chef",
    "exim4",
    "msmtprc",
    "postfix",
    "sssd",
    "nslcd.conf",
    "ldap.secret",
    "pam_ldap.secret",
    "samba",
    "mysql/debian.cnf",
    "tool-executor",
];

/// Whether a path beneath `/etc` is secret by its name.
pub(super) fn is_secret(path: &Path) -> bool {
    let Some(path) = path.to_str() else { return true };
    NAMES.iter().any(|name| match name.strip_suffix('*') {
        Some(begin) => path.strip_prefix(begin).is_some_and(|rest| !rest.contains('/')),
        None => path == *name,
    })
}

/// The ends of names whose values are secret.
const SECRET_VALUES: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "apikey",
    "access_key",
    "secret_key",
    "private_key",
    "bindpw",
];

/// Names beneath `/etc` whose examples look like secrets.
const EXAMPLES: [&str; 1] = ["ssl/openssl.cnf"];

/// Whether a path beneath `/etc` is that of a package's examples.
pub(super) fn is_example(path: &Path) -> bool {
    EXAMPLES.iter().any(|example| Path::new(example) == path)
}

/// Whether the text of a file holds a secret: a private key, an address with a password, or a value
/// for what is called a password or token.
///
/// Comments count as nothing: examples are full of them.
pub(super) fn holds_secret(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    text.lines().map(str::trim_start).any(|line| {
        let is_comment = line.starts_with(['#', ';', '!']) || line.starts_with("//#");
        !is_comment && (is_key(line) || has_password_in_address(line) || is_secret_value(line))
    })
}

fn is_key(line: &str) -> bool {
    line.starts_with("-----BEGIN") && line.contains("PRIVATE KEY")
}

/// Whether a line has `scheme://user:password@host`, or one long word in place of the user.
fn has_password_in_address(line: &str) -> bool {
    /// No user's name is longer; a token is.
    const LONGEST_NAME: usize = 20;
    line.match_indices("://").any(|(at, mark)| {
        let rest = &line[at + mark.len()..];
        let end = rest.find(['/', '"', '\'', '>', ' ', '\t']).unwrap_or(rest.len());
        let Some((user, _)) = rest[..end].rsplit_once('@') else { return false };
        user.split_once(':').is_some_and(|(_, password)| !password.is_empty())
            || user.len() > LONGEST_NAME
    })
}

/// Whether a line is `name = value`, and the name one of secrets.
fn is_secret_value(line: &str) -> bool {
    let header = line.to_ascii_lowercase();
    if header.contains("authorization:") {
        return true;
    }
    let Some((name, value)) = header.split_once('=') else { return false };
    let name = name.trim().trim_matches(['"', '\'']);
    let value = value.trim().trim_matches(['"', '\'', ';']);
    !value.is_empty()
        && (name.ends_with("_auth") || SECRET_VALUES.iter().any(|secret| name.ends_with(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        for secret in [
            "shadow",
            "shadow-",
            "gshadow",
            "passwd-",
            "sudoers",
            "sudoers.d",
            "ssh/ssh_host_ed25519_key",
            "ssh/ssh_host_rsa_key.pub",
            "ssl/private",
            "krb5.keytab",
            "machine-id",
            "cloud",
            "docker",
            "kubernetes",
            "rancher",
            "NetworkManager",
            "wireguard",
            "apt/auth.conf",
            "apt/auth.conf.d",
            "cron.d",
            "environment",
            "fstab",
        ] {
            assert!(is_secret(Path::new(secret)), "{secret}");
        }
        for shown in [
            "passwd",
            "group",
            "ssh/ssh_config",
            "ssl/openssl.cnf",
            "apt/sources.list",
            "java-17-openjdk",
            "maven",
            "php",
            "R",
            "texmf",
            "postgresql-common",
            "gitconfig",
            "pip.conf",
            "npmrc",
            "x/shadow",
            "xdg",
        ] {
            assert!(!is_secret(Path::new(shown)), "{shown}");
        }
        use std::os::unix::ffi::OsStrExt;
        assert!(is_secret(Path::new(std::ffi::OsStr::from_bytes(b"\xff"))), "not to be judged");
    }

    #[test]
    fn secrets_are_known_by_what_is_in_them() {
        for secret in [
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "x\n-----BEGIN PRIVATE KEY-----\n",
            "index-url = https://user:pass@mirror.example/simple",
            "proxy=http://u:p@proxy:3128",
            "[url \"https://ghp_0123456789abcdef0123@github.example/\"]",
            "//registry.example/:_authToken=abc",
            "_auth = abc",
            "password = x",
            "  db_password=\"x\"",
            "aws_secret_access_key = x",
            "\textraheader = AUTHORIZATION: basic x",
        ] {
            assert!(holds_secret(secret.as_bytes()), "{secret}");
        }
        for fine in [
            "",
            "# password = x",
            "; proxy = http://user:pass@proxy",
            "password =",
            "passwd: files systemd",
            "password requisite pam_deny.so",
            "index-url = https://mirror.example/simple",
            "url = ssh://git@host.example/repository",
            "-----BEGIN CERTIFICATE-----",
            "keystore.type=pkcs12",
            "http.auth.digest.disabledAlgorithms=MD5",
            "\u{fffd}",
        ] {
            assert!(!holds_secret(fine.as_bytes()), "{fine}");
        }
    }
}
