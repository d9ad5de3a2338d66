# The example cluster: three hosts, and one manifest for all of them.
{
  lib,
  # the flake of Blixard; in a flake of your own, inputs.blixard
  blixard,
}:
let
  system = "x86_64-linux";
  host =
    name:
    lib.nixosSystem {
      inherit system;
      modules = [
        blixard.nixosModules.default
        (./. + "/${name}.nix")
        (
          { pkgs, ... }:
          {
            services.blixard.manifestFile = blixard.lib.mkManifest {
              inherit pkgs;
              modules = [ ./vms.nix ];
            };
          }
        )
      ];
    };
in
lib.genAttrs [
  "alpha"
  "beta"
  "gamma"
] host
