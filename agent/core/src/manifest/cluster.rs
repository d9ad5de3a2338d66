//! What a manifest says of the cluster itself, so that no option has to change on all hosts at one moment.

use serde::{Deserialize, Serialize};

use super::{ManifestError, invalid};
use crate::types::LeaseTerms;

/// Most servers that vote: each more costs every write, and five survive the loss of two.
pub const MAX_SERVERS: usize = 5;
/// A server is away for longer than this when it is restarted or upgraded.
const SHORTEST_SECONDS: u32 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSettings {
    /// How many servers vote, as far as there are hosts for it: 1, 3 or 5.
    pub servers: usize,
    /// How long a server has to be silent until another host takes its place.
    pub replace_servers_after_seconds: u32,
    /// What nodes hold their leases by that arm from now on.
    pub lease: LeaseTerms,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self { servers: 3, replace_servers_after_seconds: 300, lease: LeaseTerms::DEFAULT }
    }
}

impl ClusterSettings {
    pub(super) fn validate(self) -> Result<(), ManifestError> {
        let Self { servers, replace_servers_after_seconds: seconds, lease: _ } = self;
        if servers % 2 == 0 || servers > MAX_SERVERS {
            let why = "it is 1, 3 or 5: an even number survives the loss of no more servers than the odd one below it";
            return Err(invalid("cluster.servers", format!("{servers} servers: {why}")));
        }
        if seconds < SHORTEST_SECONDS {
            return Err(invalid(
                "cluster.replaceServersAfterSeconds",
                format!("{seconds} s: a restart may take that long; at least {SHORTEST_SECONDS}"),
            ));
        }
        Ok(())
    }

    /// What is set otherwise in `after`, a line each.
    pub fn differences(self, after: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.servers != after.servers {
            lines.push(format!("change the cluster: servers {} → {}", self.servers, after.servers));
        }
        let (seconds, seconds_after) = (self.replace_servers_after_seconds, after.replace_servers_after_seconds);
        if seconds != seconds_after {
            lines.push(format!("change the cluster: a silent server is replaced after {seconds} → {seconds_after} s"));
        }
        if self.lease != after.lease {
            lines.push(format!("change the cluster: lease {} → {}", self.lease, after.lease));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn parse(cluster: &str) -> Result<ClusterSettings, String> {
        let json = format!(r#"{{ "version": 1, "cluster": {cluster}, "vms": {{}} }}"#);
        Manifest::parse(json.as_bytes()).map(|manifest| manifest.cluster).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_set_has_its_documented_default() {
        let without = Manifest::parse(br#"{ "version": 1, "vms": {} }"#).unwrap();
        assert_eq!(
            without.cluster,
            ClusterSettings { servers: 3, replace_servers_after_seconds: 300, lease: LeaseTerms::DEFAULT }
        );
        assert_eq!(parse("{}").unwrap(), without.cluster);
        assert_eq!(parse(r#"{ "servers": 5 }"#).unwrap().servers, 5);
    }

    #[test]
    fn an_even_number_of_servers_or_no_time_to_restart_is_refused_by_its_path() {
        for (cluster, path) in [
            (r#"{ "servers": 0 }"#, "cluster.servers"),
            (r#"{ "servers": 2 }"#, "cluster.servers"),
            (r#"{ "servers": 7 }"#, "cluster.servers"),
            (r#"{ "replaceServersAfterSeconds": 9 }"#, "cluster.replaceServersAfterSeconds"),
            (r#"{ "server": 3 }"#, "cluster"),
            (r#"{ "lease": "slow" }"#, "cluster.lease"),
            (r#"{ "lease": { "leaseMs": 5000, "renewMs": 1000, "killMs": 3000, "waitMs": 8000 } }"#, "cluster.lease"),
        ] {
            let error = parse(cluster).expect_err(cluster);
            assert!(error.contains(path), "{cluster}: {error}");
        }
    }
}
