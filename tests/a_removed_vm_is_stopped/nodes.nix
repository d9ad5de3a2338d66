{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
  };
  vms = {
    db = { };
    web = { };
  };
}
