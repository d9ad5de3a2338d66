# The NixOS module `services.blixard`. Every file holds one noun; this one only lists them.
{
  imports = [
    ./agent.nix
    ./assertions.nix
    ./manifest.nix
    ./package.nix
    ./units.nix
    ./vms.nix
  ];
}
