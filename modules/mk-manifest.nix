# A manifest without a host: evaluates `services.blixard.vms` of some modules once, for all hosts to carry.
{
  lib,
  # microvm.nix's source
  microvm,
}:
{
  # Those of the system that the VMs are for.
  pkgs,
  # The package that checks the manifest.
  package,
  # Modules that set services.blixard.vms.
  modules,
}:
let
  inherit
    (lib.evalModules {
      modules = modules ++ [
        (pkgs.path + "/nixos/modules/misc/assertions.nix")
        ./assertions.nix
        ./manifest.nix
        ./package.nix
        ./vms.nix
        {
          _module.args = { inherit pkgs; };
          services.blixard = {
            inherit package;
            microvm = lib.mkDefault microvm;
          };
        }
      ];
    })
    config
    ;
  failed = lib.filter (assertion: !assertion.assertion) config.assertions;
in
if failed == [ ] then
  config.services.blixard.manifestFile
else
  throw (lib.concatMapStringsSep "\n" (assertion: assertion.message) failed)
