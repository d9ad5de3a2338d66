{ cluster }:
cluster {
  hosts.alpha = { };
  vms = {
    db.restart = "never";
    web.restart = "always";
  };
}
