//! Hosts are lost: how soon after the end of their leases others are told to start what ran there.

use std::path::Path;

use blixard_core::types::{BootTime, LeaseTerms};

use crate::Part;
use crate::hosts::{Host, until};
use crate::report::{Samples, millis};
use crate::row::Row;
use crate::servers::Servers;

/// As short as they may be where a host is to start something in the last two seconds of a lease, too.
const TERMS: [u32; 4] = [3000, 500, 2000, 5050];
/// VMs of one host, and the hosts that have room for all of them.
const VMS: u32 = 200;
const HOSTS: u32 = 20;
/// The VM that is alone.
const ONE: &str = "one";

pub struct Takeover {
    pub losses: usize,
}

impl Takeover {
    const ONE: &str = "its only VM is started elsewhere, after the end of its lease";
    const FIRST: &str = "the first of 200 VMs is started elsewhere";
    const LAST: &str = "the last of 200 VMs is, on one of 20 hosts";
}

impl Part for Takeover {
    fn title(&self) -> String {
        format!("{} losses of a host with one VM a round, and one of a host with {VMS}", self.losses)
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row::new(Self::ONE, "ms").median_at_most(500.0, 60.0).each_at_most(500.0, 150.0),
            Row::new(Self::FIRST, "ms"),
            Row::new(Self::LAST, "ms").each_at_most(3000.0, 500.0),
        ]
    }

    async fn run(&self, dir: &Path) -> Samples {
        let mut samples = Samples::default();
        let [lease, renew, kill, wait] = TERMS;
        let terms = LeaseTerms::new(lease, renew, kill, wait).expect("they fit together");
        let profile = serde_json::to_string(&terms).expect("it is plain data");
        let servers = Servers::start(dir, &profile).await;

        // It has all of them, as nobody else is there.
        let mut full = Host::new(dir, "full", &servers, VMS);
        full.start();
        until("a lease", || full.deadline()).await;
        let many: Vec<_> = (0..VMS).map(|vm| format!("vm{vm}")).collect();
        servers.declare(&manifest(&profile, &many)).await;
        until("its VMs", || (full.starts().len() == VMS as usize).then_some(())).await;
        let mut hosts: Vec<_> =
            (0..HOSTS).map(|number| Host::new(dir, &format!("host{number}"), &servers, VMS / HOSTS)).collect();
        hosts.iter_mut().for_each(Host::start);
        for host in &hosts {
            until("a lease", || host.deadline()).await;
        }
        let over = full.lose(terms).await;
        let starts = || hosts.iter().flat_map(Host::starts).map(|(_, at)| at).collect::<Vec<_>>();
        let starts = until("all VMs elsewhere", || Some(starts()).filter(|all| all.len() == VMS as usize)).await;
        samples.add(Self::FIRST, late(over, *starts.iter().min().expect("there are some")));
        samples.add(Self::LAST, late(over, *starts.iter().max().expect("there are some")));

        servers.declare(&manifest(&profile, &[ONE.to_owned()])).await;
        for _ in 0..self.losses {
            let (at, _) = until("the VM", || last_start(&hosts)).await;
            let over = hosts[at].lose(terms).await;
            let (_, started) = until("the VM elsewhere", || last_start(&hosts).filter(|(other, _)| *other != at)).await;
            samples.add(Self::ONE, late(over, started));
            hosts[at].start();
            until("a lease", || hosts[at].deadline()).await;
        }
        samples
    }
}

/// How much later than its due time something was, in milliseconds; less than nothing where it was earlier.
fn late(due: BootTime, at: BootTime) -> f64 {
    if at < due { -millis(at.until(due)) } else { millis(due.until(at)) }
}

/// Which host was told last to start the only VM, and when.
fn last_start(hosts: &[Host]) -> Option<(usize, BootTime)> {
    let last_of = |host: &Host| host.starts().into_iter().rfind(|(instance, _)| *instance == format!("{ONE}-0"));
    let last = hosts.iter().enumerate().filter_map(|(at, host)| Some((at, last_of(host)?.1)));
    last.max_by_key(|(_, started)| *started)
}

/// These VMs, and leases on these terms.
fn manifest(profile: &str, vms: &[String]) -> String {
    let vm = |name: &String| {
        let runner = format!("/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-microvm-qemu-{name}-0");
        let system = blixard::probe::system();
        format!(
            r#""{name}": {{ "runners": ["{runner}"], "system": "{system}", "hypervisor": "qemu", "vcpus": 1,
               "memoryMiB": 64, "kvm": false }}"#
        )
    };
    let vms: Vec<_> = vms.iter().map(vm).collect();
    format!(r#"{{ "version": 1, "cluster": {{ "lease": {profile} }}, "vms": {{ {} }} }}"#, vms.join(", "))
}
