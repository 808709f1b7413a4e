# Encrypt the names, while the table is locked.
class EncryptName < ActiveRecord::Migration[6.1]
  def up
    execute "SELECT nomp_crypt.encrypt_column('pupils', 'name', 'school')"
  end

  def down
    execute "SELECT nomp_crypt.decrypt_column('pupils', 'name')"
  end
end
