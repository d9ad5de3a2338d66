# What a claim says of its VMs → services.blixard.vms, as real microvm.nix guests.
{ lib }:
lib.mapAttrs (
  name: spec:
  {
    memoryOverheadMiB = 256;
    config = import ./guest.nix {
      inherit name;
      replicas = spec.replicas or 1;
    };
  }
  // spec
)
