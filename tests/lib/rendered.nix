# What tests/render writes down: the module's units once, and each claim's config and manifest, as data.
{
  nixpkgs ? <nixpkgs>,
}:
let
  system = "x86_64-linux";
  pkgs = import nixpkgs { inherit system; };
  inherit (pkgs) lib;
  inherit (builtins) hashString pathExists readDir;

  package = {
    type = "derivation";
    name = "blixard";
    outPath = "/opt/blixard";
    meta.mainProgram = "blixard";
  };

  # A store path as real ones are written (their alphabet lacks e), of a runner that isn't there.
  runner =
    instance:
    let
      name = "microvm-qemu-${instance}";
      hash = lib.replaceStrings [ "e" ] [ "z" ] (builtins.substring 0 32 (hashString "sha256" name));
    in
    "/nix/store/${hash}-${name}";

  declare =
    name:
    {
      replicas ? 1,
      ...
    }@spec:
    {
      runners = lib.genList (k: runner "${name}-${toString k}") replicas;
      hypervisor = "qemu";
      vcpus = 1;
      memoryMiB = 96;
      memoryOverheadMiB = 256;
      kvm = false;
    }
    // spec;

  standIn = {
    services.blixard = { inherit package; };
  };
  # Units take all of NixOS; what a claim's host says of Blixard doesn't.
  nixos =
    module:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit lib pkgs system;
      modules = [
        ../../modules
        standIn
        module
      ];
    }).config;
  alone =
    module:
    import ./alone.nix { inherit lib pkgs; } {
      imports = [
        standIn
        module
      ];
    };

  claims = lib.filter (name: pathExists ../${name}/nodes.nix) (
    lib.attrNames (lib.filterAttrs (_: type: type == "directory") (readDir ../.))
  );
  hosts = lib.genAttrs claims (
    name:
    import ../${name}/nodes.nix {
      cluster = import ./cluster.nix {
        inherit lib;
        carry =
          { vms, settings }:
          {
            vms = lib.mapAttrs declare vms;
            cluster = settings;
          };
      };
    }
  );

  rendered =
    host:
    let
      failed = lib.filter (assertion: !assertion.assertion) host.assertions;
    in
    if failed == [ ] then
      host.services.blixard.rendered
    else
      throw (lib.concatMapStrings (assertion: assertion.message) failed);
in
{
  units = lib.mapAttrs (_: unit: unit.text) (
    lib.filterAttrs (name: _: lib.hasPrefix "blixard" name)
      (nixos hosts.one_host_runs_a_vm.alpha).systemd.units
  );
  claims = lib.mapAttrs (_: lib.mapAttrs (_: host: rendered (alone host))) hosts;
}
