{
  imports = [ ./common.nix ];
  networking.hostName = "gamma";
  networking.interfaces.br0.ipv4.addresses = [
    {
      address = "10.0.0.3";
      prefixLength = 24;
    }
  ];
  services.blixard.settings.node.labels.rack = "3";
}
