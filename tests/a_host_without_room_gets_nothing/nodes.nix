# `web` fits on gamma alone, and `huge` on no host: 512 MiB of each host's memory are kept for itself.
{ cluster }:
let
  small.services.blixard.settings.resources.memory_mib = 640;
in
cluster {
  hosts = {
    alpha = small;
    beta = small;
    gamma = { };
  };
  vms = {
    huge.memoryMiB = 8192;
    web = { };
  };
}
