{
  imports = [ ./common.nix ];
  networking.hostName = "beta";
  networking.interfaces.br0.ipv4.addresses = [
    {
      address = "10.0.0.2";
      prefixLength = 24;
    }
  ];
  services.blixard.settings.node.labels.rack = "2";
}
