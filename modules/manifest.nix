# The manifest: what services.blixard.vms becomes, and where the agent finds it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    filterAttrs
    literalExpression
    mapAttrs
    mkOption
    types
    ;
  cfg = config.services.blixard;

  entry = vm: {
    inherit (vm)
      system
      hypervisor
      vcpus
      memoryMiB
      diskMiB
      kvm
      requires
      restart
      notifies
      ;
    runners = map (runner: "${runner}") vm.runners;
  };
  # Left out, the agent takes its own figure for the hypervisor.
  overhead = vm: filterAttrs (_: value: value != null) { inherit (vm) memoryOverheadMiB; };
in
{
  options.services.blixard = {
    manifestFile = mkOption {
      type = types.nullOr types.path;
      default =
        if cfg.rendered.manifest == null then
          null
        else
          cfg.check "check-manifest" (
            (pkgs.formats.json { }).generate "blixard-manifest.json" cfg.rendered.manifest
          );
      defaultText = literalExpression "the manifest of services.blixard.vms, or null if that is null";
      description = ''
        The manifest that this host offers to the cluster as {file}`/etc/blixard/manifest.json`, checked by
        {command}`blixard check-manifest` when the system is built. Set it to what `lib.mkManifest` returns to evaluate
        the VMs once for all hosts. If null, the host carries none and takes the cluster's.
      '';
    };

    rendered.manifest = mkOption {
      type = types.nullOr types.attrs;
      internal = true;
      readOnly = true;
      description = "The manifest of services.blixard.vms as data, or null if there are none.";
      default =
        if cfg.vms == null then
          null
        else
          {
            version = 1;
            vms = mapAttrs (_: vm: entry vm // overhead vm) cfg.vms;
          };
    };
  };
}
