//! config.toml → `Config`: what one host is told, checked before anything starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use blixard_core::types::{Address, Hypervisor, Labels, NodeName, NodeRole, Resources, Server, TrustAnchor};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// What one agent is configured with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    pub cluster: Cluster,
    #[serde(default)]
    pub resources: ResourceOverrides,
    #[serde(default)]
    pub vms: Vms,
    #[serde(default)]
    pub tasks: Tasks,
    #[serde(default)]
    pub fence: Fence,
    /// Absent on a host that carries no manifest.
    pub manifest: Option<ManifestFile>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    name: Spanned<NodeName>,
    /// Raft's log, the store and the VMs' working directories.
    #[serde(default = "default_data_dir", deserialize_with = "absolute")]
    pub data_dir: PathBuf,
    /// What is gone after a reboot: the API's socket and the files that the gate reads.
    #[serde(default = "default_run_dir", deserialize_with = "absolute")]
    pub run_dir: PathBuf,
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// What it may be in its cluster.
    #[serde(default = "auto")]
    role: Spanned<NodeRole>,
    /// The key by which the manifest declares it; it joins by that, then.
    #[serde(default, deserialize_with = "absolute_if_any")]
    pub key_file: Option<PathBuf>,
    /// Where the others reach it, if it isn't among `cluster.servers`.
    address: Option<Spanned<Address>>,
    #[serde(default)]
    pub labels: Labels,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    servers: Spanned<Vec<Server>>,
    /// At least 32 bytes that the hosts of the cluster share, and nobody else has.
    #[serde(default, deserialize_with = "absolute_if_any")]
    pub secret_file: Option<PathBuf>,
    /// The one that is to take its place.
    #[serde(default, deserialize_with = "absolute_if_any")]
    pub next_secret_file: Option<PathBuf>,
    /// Holds what lets a host in that doesn't have the secret.
    #[serde(default, deserialize_with = "absolute_if_any")]
    pub token_file: Option<PathBuf>,
    /// By what a host with a key of its own knows the cluster.
    pub authority: Option<TrustAnchor>,
}

/// What is missing is read from the machine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceOverrides {
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    pub disk_mib: Option<u64>,
    pub hypervisors: Option<Vec<Hypervisor>>,
    #[serde(default)]
    pub reserve: Reserve,
}

/// What the host itself keeps.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reserve {
    pub cpus: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

/// How the VMs of this host are run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vms {
    pub user: String,
    pub group: String,
    /// Taps are attached to it; without one they stay by themselves.
    #[serde(deserialize_with = "interface")]
    pub bridge: Option<String>,
}

/// Who tasks run as; not who the VMs run as, whose processes it could signal.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    user: Spanned<String>,
    pub group: String,
}

/// What stops the automatic VMs of this host when it has lost its lease.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fence {
    /// The device that resets this host if the fence itself hangs; written "none" where there is to be none.
    #[serde(deserialize_with = "device")]
    pub watchdog: Option<PathBuf>,
    /// Whether automatic VMs run although this host is one itself, which can be paused without knowing.
    pub allow_virtual_hosts: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    pub path: PathBuf,
    /// Whether an activation of this host may bring back a manifest that was head before.
    #[serde(default)]
    pub authority: bool,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is wrong: {reason}")]
    Parse { path: PathBuf, reason: String },
    #[error("the configuration {path} is wrong at line {line}, {key}: {reason}")]
    Invalid { path: PathBuf, line: usize, key: &'static str, reason: String },
}

impl Config {
    /// Reads and validates a file; nothing that it names is touched.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        config.validate().map_err(|(span, key, reason)| {
            let line = text[..span.min(text.len())].matches('\n').count() + 1;
            ConfigError::Invalid { path: path.to_owned(), line, key, reason }
        })?;
        Ok(config)
    }

    pub fn name(&self) -> &NodeName {
        self.node.name.get_ref()
    }

    pub fn servers(&self) -> &[Server] {
        self.cluster.servers.get_ref()
    }

    pub fn role(&self) -> NodeRole {
        *self.node.role.get_ref()
    }

    /// This host as the others know it.
    pub fn own(&self) -> Server {
        let declared =
            |address: &Spanned<Address>| Server { name: self.name().clone(), address: address.get_ref().clone() };
        let own = self.listed().cloned().or_else(|| self.node.address.as_ref().map(declared));
        own.expect("validate() has found one of the two")
    }

    fn listed(&self) -> Option<&Server> {
        self.servers().iter().find(|server| server.name == *self.name())
    }

    /// What instances may take: the machine's, as overridden, less the reserve.
    pub fn offered(&self, machine: Resources) -> Resources {
        let own = &self.resources;
        let total = Resources {
            cpus: own.cpus.unwrap_or(machine.cpus),
            memory_mib: own.memory_mib.unwrap_or(machine.memory_mib),
            disk_mib: own.disk_mib.unwrap_or(machine.disk_mib),
        };
        let reserve = &own.reserve;
        total.saturating_sub(Resources {
            cpus: reserve.cpus,
            memory_mib: reserve.memory_mib,
            disk_mib: reserve.disk_mib,
        })
    }

    /// What the types can't say: (byte offset, key, reason) of the first thing that is wrong.
    fn validate(&self) -> Result<(), (usize, &'static str, String)> {
        let (servers, span) = (self.servers(), self.cluster.servers.span().start);
        for (position, server) in servers.iter().enumerate() {
            let earlier = &servers[..position];
            if earlier.iter().any(|other| other.name == server.name) {
                return Err((span, "cluster.servers", format!("{} is named twice", server.name)));
            }
            if earlier.iter().any(|other| other.address == server.address) {
                return Err((span, "cluster.servers", format!("{} is the address of two hosts", server.address)));
            }
        }
        if let Some(reason) = self.wrong_credential() {
            return Err((span, "cluster", reason.to_owned()));
        }
        match (self.listed(), &self.node.address) {
            (None, None) => {
                let reason = format!(
                    "{} is not among cluster.servers, so the others don't know where it is: set node.address, or add it \
                     there, as every host has it",
                    self.name()
                );
                return Err((self.node.name.span().start, "node.name", reason));
            }
            (Some(listed), Some(address)) if listed.address != *address.get_ref() => {
                let reason = format!("cluster.servers has this host at {}: leave this out", listed.address);
                return Err((address.span().start, "node.address", reason));
            }
            _ => {}
        }
        if self.role() == NodeRole::Worker && servers.first().is_some_and(|first| first.name == *self.name()) {
            let reason =
                format!("{} is first in cluster.servers, and so founds the cluster: it can't be a worker", self.name());
            return Err((self.node.role.span().start, "node.role", reason));
        }
        if self.tasks.user.get_ref() == &self.vms.user {
            let reason = format!("{} runs the VMs, and a task of that user could signal them", self.vms.user);
            return Err((self.tasks.user.span().start, "tasks.user", reason));
        }
        Ok(())
    }

    /// What is wrong with that by which this host joins.
    fn wrong_credential(&self) -> Option<&'static str> {
        let Cluster { secret_file, next_secret_file, token_file, authority, .. } = &self.cluster;
        let key_file = &self.node.key_file;
        match [secret_file, token_file, key_file].into_iter().flatten().count() {
            0 => Some("none of secret_file, token_file and node.key_file is set, and a host joins by one of them"),
            1 if secret_file.is_none() && next_secret_file.is_some() => {
                Some("next_secret_file is set without the secret_file whose place it is to take")
            }
            1 if key_file.is_some() && authority.is_none() => Some(
                "authority isn't set, by which a host with a key knows the cluster: `blixard cluster authority` prints it",
            ),
            1 if key_file.is_none() && authority.is_some() => {
                Some("authority is set, by which a host with node.key_file knows the cluster, and this one has none")
            }
            1 => None,
            _ => Some(
                "more than one of secret_file, token_file and node.key_file is set, and a host joins by one of them",
            ),
        }
    }
}

impl Default for Reserve {
    fn default() -> Self {
        Self { cpus: 0, memory_mib: 512, disk_mib: 1024 }
    }
}

impl Default for Vms {
    fn default() -> Self {
        Self { user: "blixard-vm".to_owned(), group: "kvm".to_owned(), bridge: None }
    }
}

impl Default for Fence {
    fn default() -> Self {
        Self { watchdog: Some(PathBuf::from("/dev/watchdog")), allow_virtual_hosts: false }
    }
}

impl Tasks {
    pub fn user(&self) -> &str {
        self.user.get_ref()
    }
}

/// A path that doesn't depend on where the agent was started.
fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    let relative = || D::Error::custom(format!("{} is not an absolute path", path.display()));
    if path.is_absolute() { Ok(path) } else { Err(relative()) }
}

fn absolute_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    absolute(deserializer).map(Some)
}

fn device<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.as_str() {
        "none" => Ok(None),
        path if path.starts_with("/dev/") => Ok(Some(PathBuf::from(path))),
        _ => Err(D::Error::custom(format!("{text:?} is no device: write one like \"/dev/watchdog\", or \"none\""))),
    }
}

/// A network interface's name, which Linux limits to 15 bytes.
fn interface<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let valid = (1..=15).contains(&name.len()) && !name.contains(['/', ' ']);
    if valid {
        Ok(Some(name))
    } else {
        Err(D::Error::custom(format!("{name:?} is not an interface's name: 1 to 15 bytes")))
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self { user: Spanned::new(0..0, "blixard-task".to_owned()), group: "blixard-task".to_owned() }
    }
}

fn auto() -> Spanned<NodeRole> {
    Spanned::new(0..0, NodeRole::Auto)
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/blixard")
}

fn default_run_dir() -> PathBuf {
    PathBuf::from("/run/blixard")
}

fn default_listen() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7420))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"
[node]
name = "alpha"

[cluster]
servers = ["alpha@192.168.1.1:7420", "beta@[fd00::2]:7420", "gamma@gamma.lan:7420"]
secret_file = "/run/secret"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("config.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_set_has_its_documented_default() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.node.listen.to_string(), "[::]:7420");
        assert_eq!(config.own().to_string(), "alpha@192.168.1.1:7420");
        let machine = Resources { cpus: 4, memory_mib: 4096, disk_mib: 2048 };
        assert_eq!(config.offered(machine), Resources { cpus: 4, memory_mib: 3584, disk_mib: 1024 });
    }

    #[test]
    fn a_host_that_is_not_listed_says_where_it_is_and_may_be_a_worker() {
        let delta = "name = \"delta\"\naddress = \"delta.lan:7420\"\nrole = \"worker\"";
        let config = parse(&GOOD.replace("name = \"alpha\"", delta)).unwrap();
        assert_eq!((config.own().to_string().as_str(), config.role()), ("delta@delta.lan:7420", NodeRole::Worker));
        assert_eq!(parse(GOOD).unwrap().role(), NodeRole::Auto);
    }

    #[test]
    fn a_host_with_a_key_of_its_own_knows_the_cluster_by_its_authority_and_no_other_has_to() {
        let authority = format!("authority = \"{}:{}\"", "7".repeat(32), "8".repeat(64));
        let with_key = |rest: &str| {
            let text = GOOD.replace("[cluster]", "key_file = \"/run/key\"\n[cluster]");
            parse(&text.replace("secret_file = \"/run/secret\"", rest))
        };
        let config = with_key(&authority).unwrap();
        assert_eq!(config.node.key_file.as_deref(), Some(Path::new("/run/key")));
        assert_eq!(format!("authority = \"{}\"", config.cluster.authority.unwrap()), authority);
        let error = with_key("").unwrap_err();
        assert!(error.contains("line 7, cluster") && error.contains("blixard cluster authority"), "{error}");
        let error = parse(&format!("{GOOD}{authority}\n")).unwrap_err();
        assert!(error.contains("line 6, cluster") && error.contains("node.key_file"), "{error}");
    }

    #[test]
    fn a_host_is_guarded_by_its_watchdog_unless_it_is_said_to_have_none() {
        let fence = |text: &str| parse(&format!("{GOOD}[fence]\n{text}\n")).unwrap().fence;
        assert_eq!(fence("").watchdog.as_deref(), Some(Path::new("/dev/watchdog")));
        assert_eq!(fence("watchdog = \"/dev/watchdog1\"").watchdog.as_deref(), Some(Path::new("/dev/watchdog1")));
        assert_eq!(fence("watchdog = \"none\"").watchdog, None);
        assert!(!fence("").allow_virtual_hosts && fence("allow_virtual_hosts = true").allow_virtual_hosts);
    }

    #[test]
    fn what_is_set_overrides_the_machine() {
        let text = format!("{GOOD}\n[resources]\ncpus = 2\nmemory_mib = 1000\n[resources.reserve]\nmemory_mib = 100\n");
        let machine = Resources { cpus: 4, memory_mib: 4096, disk_mib: 2048 };
        let offered = parse(&text).unwrap().offered(machine);
        assert_eq!(offered, Resources { cpus: 2, memory_mib: 900, disk_mib: 1024 });
    }

    #[test]
    fn an_error_names_the_line_and_the_key() {
        for (from, to, line, key) in [
            ("name = \"alpha\"", "nmae = \"alpha\"", "line 3", "nmae"),
            ("name = \"alpha\"", "name = \"Alpha\"", "line 3", "Alpha"),
            ("name = \"alpha\"", "name = \"delta\"", "line 3", "node.name"),
            ("name = \"alpha\"", "name = 7", "line 3", "name"),
            ("name = \"alpha\"", "name = \"alpha\"\nrole = \"sever\"", "line 4", "sever"),
            ("name = \"alpha\"", "name = \"alpha\"\nrole = \"worker\"", "line 4", "node.role"),
            ("name = \"alpha\"", "name = \"alpha\"\naddress = \"192.168.1.9:7420\"", "line 4", "node.address"),
            ("beta@[fd00::2]:7420", "beta@fd00::2:7420", "line 6", "HOST:PORT"),
            ("beta@[fd00::2]:7420", "beta", "line 6", "NAME@HOST:PORT"),
            ("beta@[fd00::2]:7420", "alpha@10.0.0.1:1", "line 6", "cluster.servers"),
            ("beta@[fd00::2]:7420", "beta@192.168.1.1:7420", "line 6", "cluster.servers"),
            ("/run/secret", "secret", "line 7", "secret is not an absolute path"),
            ("secret_file = \"/run/secret\"", "", "line 6", "none of secret_file, token_file and node.key_file"),
            ("\"/run/secret\"", "\"/run/secret\"\ntoken_file = \"/run/token\"", "line 6", "more than one of"),
            ("[cluster]", "key_file = \"/run/key\"\n[cluster]", "line 7", "more than one of"),
            ("[cluster]", "key_file = \"key\"\n[cluster]", "line 5", "key is not an absolute path"),
            ("\"/run/secret\"", "\"/run/secret\"\nauthority = \"ab:cd\"", "line 8", "blixard cluster authority"),
            (
                "secret_file = \"/run/secret\"",
                "token_file = \"/t\"\nnext_secret_file = \"/s\"",
                "line 6",
                "without the secret_file",
            ),
            ("secret_file = \"/run/secret\"", "token_file = \"token\"", "line 7", "token is not an absolute path"),
            ("[cluster]", "data_dir = \"x\"\n[cluster]", "line 5", "x is not an absolute path"),
            ("[cluster]", "[vms]\nbridge = \"a-name-that-is-too-long\"\n[cluster]", "line 6", "15 bytes"),
            ("[cluster]", "[tasks]\nuser = \"blixard-vm\"\n[cluster]", "line 6", "tasks.user"),
            ("[cluster]", "[fence]\nwatchdog = \"softdog\"\n[cluster]", "line 6", "softdog"),
            ("[cluster]", "[clutser]", "line 5", "clutser"),
        ] {
            let error = parse(&GOOD.replace(from, to)).expect_err(to);
            assert!(error.contains(line) && error.contains(key), "{to}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_change_to_a_file_is_parsed_without_a_panic(at in 0..GOOD.len(), length in 0..20_usize, text in ".{0,20}") {
            let mut config = GOOD.to_owned();
            config.replace_range(at..(at + length).min(GOOD.len()), &text);
            let _ = parse(&config);
        }
    }
}
