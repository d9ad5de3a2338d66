//! Starts and stops a VM as the agent does, and by `systemctl`, in turn; prints how long each start took, in milliseconds:
//! `start_vm CONFIG INSTANCE RUNNER TIMES`.
//!
//! For a host whose agent is stopped, and whose fence waits to be armed: see `tests/measure/start.py`.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use blixard::agent::systemd;
use blixard::boot_time;
use blixard::config::Config;
use blixard::units::{Units, ask_fence, vm_unit};
use blixard_core::fence::{Reply, Request, Stage, Status};
use blixard_core::reconcile::UnitChange;
use blixard_core::types::{Failover, Generation, LeaseTerms, NodeEpoch, RestartPolicy};
use blixard_core::unit::VmUnit;

const EPOCH: NodeEpoch = NodeEpoch(1);

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, instance, runner, times] = &arguments[..] else {
        return Err("usage: start_vm CONFIG INSTANCE RUNNER TIMES".into());
    };
    let config = Config::load(Path::new(config))?;
    let run_dir = config.node.run_dir.clone();
    let units = systemd(config).await?;
    let mut vm = VmUnit {
        instance: instance.parse()?,
        generation: Generation(0),
        runner: runner.parse()?,
        restart: RestartPolicy::Always,
        failover: Failover::Automatic,
        notifies: false,
        cpus: 1,
        memory_max_mib: 64,
    };
    let unit = vm_unit(&vm.instance, vm.failover);
    arm(&run_dir).await?;
    for _ in 0..times.parse()? {
        for side in ["agent", "systemctl"] {
            tell(&run_dir, Request::Renewed { epoch: EPOCH, sent: boot_time::now() }).await?;
            // What was stopped never starts again under its generation.
            vm.generation = Generation(vm.generation.0 + 1);
            let begun = if side == "agent" {
                let begun = Instant::now();
                units.perform(&UnitChange::StartVm(vm.clone(), EPOCH)).await?;
                begun
            } else {
                units.perform(&UnitChange::UpdateVm(vm.clone(), EPOCH)).await?;
                let begun = Instant::now();
                if !Command::new("systemctl").args(["start", &unit]).status()?.success() {
                    return Err(format!("{unit} does not start").into());
                }
                begun
            };
            println!("{side} {:.3}", begun.elapsed().as_secs_f64() * 1e3);
            units.perform(&UnitChange::StopVm(vm.instance.clone())).await?;
        }
    }
    Ok(())
}

/// Arms the fence of the host, for as long as the longest lease.
async fn arm(run_dir: &Path) -> Result<(), Box<dyn Error>> {
    match ask_fence(run_dir, Request::Status).await? {
        Reply::Status(Status { stage: Stage::Idle { nonce }, .. }) => {
            tell(run_dir, Request::Arm { nonce, epoch: EPOCH, terms: LeaseTerms::RELAXED }).await
        }
        other => Err(format!("the fence does not wait to be armed: {other:?}").into()),
    }
}

async fn tell(run_dir: &Path, request: Request) -> Result<(), Box<dyn Error>> {
    match ask_fence(run_dir, request).await? {
        Reply::Done => Ok(()),
        other => Err(format!("the fence refuses: {other:?}").into()),
    }
}
