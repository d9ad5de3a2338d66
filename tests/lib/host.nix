# What a host needs to be one as a NixOS VM: its address on a bridge that the guests' taps join.
{ config, pkgs, ... }:
let
  inherit (config.networking) primaryIPAddress;
in
{
  virtualisation = {
    cores = 2;
    memorySize = 3072;
    diskSize = 4096;
    # A scenario adds a path to it.
    writableStore = true;
  };
  networking = {
    useDHCP = false;
    bridges.br0.interfaces = [ "eth1" ];
    interfaces.eth1 = {
      ipv4.addresses = pkgs.lib.mkForce [ ];
      ipv6.addresses = pkgs.lib.mkForce [ ];
    };
    interfaces.br0.ipv4.addresses = [
      {
        address = primaryIPAddress;
        prefixLength = 24;
      }
    ];
  };
  services.blixard.openFirewall = true;
  environment.systemPackages = [
    pkgs.curl
    pkgs.jq
  ];
}
