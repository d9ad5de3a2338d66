# What `tests/rig --measure` has: three servers, and two workers with room for hundreds of VMs that do nothing.
{ cluster }:
let
  worker.services.blixard.settings = {
    node.role = "worker";
    resources = {
      cpus = 512;
      memory_mib = 65536;
    };
  };
in
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
    delta = worker;
    epsilon = worker;
  };
  servers = [
    "alpha"
    "beta"
    "gamma"
  ];
  settings.lease = "fast";
  vms.web = { };
}
